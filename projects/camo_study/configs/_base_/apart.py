# What an expert that is trained apart holds, and for how long it learns; see mixture.py.
_base_ = ["./plain.py", "./mixture.py"]
held = {
    f"backbone.body.{part}": dict(lr_mult=0.0)
    for part in ("patch_embed", "pos_embed", "cls_token", "blocks.0.", "blocks.1.")
}
apart_schedule = dict(max_epochs=40, val_interval=20)
