"""The words of `dltrain ls`, which its completion needs too."""

LISTS = ("models", "backbones", "data", "recipes", "augment", "trainers", "experiments", "runs")
# With their rules: of `ls models`, and of `ls runs`.
SIZES = {"px": "int >= 1", "channels": "one of 1 | 3", "classes": "int >= 1"}
RUN_OPTIONS = {"sort": "str", "seeds": "one of joined | each", "json": "bool", "csv": "str"}
