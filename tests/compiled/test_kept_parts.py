"""Parts of the prepared model are compiled once; the next start loads them and traces nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from miniature import NARROW, SMALL_BODY

from codmoe.compiled import kept_parts
from codmoe.compiled.copies import PartCopies
from codmoe.compiled.kept_parts import KeptParts
from codmoe.models.moe import ModelLevelMoE


def build():
    backbone = dict(type="TimmPyramid", name="pvt_v2_b0", **SMALL_BODY)
    return ModelLevelMoE(backbone, experts=NARROW).eval()


KEPT = """
import json, threading
import torch
from torch import nn
from torch._dynamo.utils import counters
from test_kept_parts import build
from codmoe.compiled import kept_parts
from codmoe.compiled.copies import PartCopies
from codmoe.compiled.graphs import Preparer

class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, image, levels):
        return [self.layer(image).relu() + level for level in levels]

torch.manual_seed(0)
part, made, make_whole = Part().eval().requires_grad_(False), [], kept_parts.make_whole
kept_parts.make_whole = lambda *given: made.append(given) or make_whole(*given)
device = torch.device("cpu")
kept = kept_parts.KeptParts(PartCopies(build(), "fp32", "contiguous"))
fast = Preparer(device, "inductor", kept.find).compiled("part", part)

def call(function, count):
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        x = torch.linspace(-1, 1, 8 * count).view(count, 8)
        return function(x, [x + 1])[0]

found = {count: call(fast, count) for count in (1, 2)}
def again():
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert torch.equal(call(fast, 2), found[2])
thread = threading.Thread(target=again)
thread.start()
thread.join()
result = [len(made), counters["frames"]["total"]]
part.layer.weight.mul_(2)  # it follows the weights
for count in found:
    torch.testing.assert_close(call(fast, count), call(part, count))
assert not torch.equal(call(fast, 1), found[1])
part.layer.weight = nn.Parameter(torch.ones(8, 8).t(), False)
call(fast, 1)  # it asks its guards
print(json.dumps(result))
"""


def test_the_next_start_loads_the_parts_that_were_kept_and_traces_nothing(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("torch compiles for a CPU with g++")
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    env["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path)

    def start():
        command = [sys.executable, "-c", KEPT]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        notes = [line for line in done.stderr.splitlines() if " is compiled a" in line]
        assert "as if nothing were kept" in notes.pop()
        return json.loads(done.stdout.splitlines()[-1]), notes

    assert start() == ([2, 0], [])
    assert start() == ([0, 0], [])
    whole = next((tmp_path / "codmoe").glob("*.whole"))
    whole.write_bytes(whole.read_bytes()[:1000])
    made, (told,) = start()
    assert made == [1, 0] and "compiled anew" in told


def test_nothing_is_read_where_others_may_write(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kept_parts, "load_whole", None)
    folder = tmp_path / "codmoe"
    folder.mkdir()
    folder.chmod(0o777)
    kept, part = KeptParts(PartCopies(build(), "fp32", "contiguous")), torch.nn.ReLU()
    assert [kept.find("part", part, (torch.ones(1),)) for _ in range(2)] == [None, None]
    (told,) = capsys.readouterr().err.splitlines()
    assert "part is compiled as if nothing were kept: PermissionError" in told
