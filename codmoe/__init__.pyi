from codmoe.inference.inferencer import Inferencer as Inferencer
from codmoe.inference.zoo import create_model as create_model
from codmoe.inference.zoo import list_models as list_models
from codmoe.models.moe import ModelLevelMoE as ModelLevelMoE

__version__: str
