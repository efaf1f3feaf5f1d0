"""What a run should do: the recipe, its sections, how they are read, changed by ``--set`` and fingerprinted. No torch here.

A recipe is a YAML file under ``sr3_core/recipes`` (or a path). Every section is frozen and refuses unknown keys. A room
receives only its own section, as one canonical JSON string, so that a change elsewhere leaves its result up to date.
"""

from sr3_core.config.data import Blur, Codec, Corruption, Data, Jpeg, Noise, Split, Tiles
from sr3_core.config.kubernetes import FOLLOWER, HEAD, SIZES, Kubernetes, Room, Toleration, Variable
from sr3_core.config.optimisation import Average, Ema, LearningRate, Optimizer
from sr3_core.config.recipe import Evaluation, Export, Recipe, Rule, Scaling, Search, load
from sr3_core.config.recipe_file import RECIPES, recipe_names, refuse_secrets
from sr3_core.config.section import MAX_SECTION_BYTES, SPLITS, Plugin, Section, SectionT, SplitName, fingerprint, options, parse
from sr3_core.config.stage import Augment, DataParallel, Mix, OtherData, Stage, Training, sizes
from sr3_core.config.watch import Watch
from sr3_core.errors import nearest

__all__ = [
    "FOLLOWER",
    "HEAD",
    "MAX_SECTION_BYTES",
    "RECIPES",
    "SIZES",
    "SPLITS",
    "Augment",
    "Average",
    "Blur",
    "Codec",
    "Corruption",
    "Data",
    "DataParallel",
    "Ema",
    "Evaluation",
    "Export",
    "Jpeg",
    "Kubernetes",
    "LearningRate",
    "Mix",
    "Noise",
    "Optimizer",
    "OtherData",
    "Plugin",
    "Recipe",
    "Room",
    "Rule",
    "Scaling",
    "Search",
    "Section",
    "SectionT",
    "Split",
    "SplitName",
    "Stage",
    "Tiles",
    "Toleration",
    "Training",
    "Variable",
    "Watch",
    "fingerprint",
    "load",
    "nearest",
    "options",
    "parse",
    "recipe_names",
    "refuse_secrets",
    "sizes",
]
