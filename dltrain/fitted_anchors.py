"""model.anchors=auto: the anchors of a detector that fit the boxes it is trained on."""

from __future__ import annotations

from omegaconf import DictConfig

from dltrain.batches import generator
from dltrain.data.datamodule import DataModule
from dltrain.errors import UserError
from dltrain.models.anchors import anchor_sizes, fit_anchors, mean_best_iou, scale_boxes


def choose_anchors(config: DictConfig, data: DataModule) -> str:
    """With model.anchors=auto, writes the sizes of anchors that fit the training boxes into the config, unless a run's
    config has them already. Returns a line with the sizes; "" where nothing was chosen."""
    keys = config.model
    if keys.get("anchors") != "auto" or keys.anchor_boxes is not None:
        return ""
    fixed = anchor_sizes(keys.anchor_px, keys.ratios)
    sizes = scale_boxes(data.training_boxes(), keys.short_px, keys.long_px)
    try:
        fitted = fit_anchors(sizes, len(fixed), generator("anchors", config.seed))
    except ValueError as error:
        raise UserError(f"model.anchors=auto: {error}") from None
    keys.anchor_boxes = [[round(side, 1) for side in size] for size in fitted.tolist()]
    listed = ", ".join(f"{width:g} x {height:g}" for width, height in keys.anchor_boxes)
    return (f"anchors fitted to the training boxes: mean best IoU {mean_best_iou(sizes, fitted):.3f}, fixed ones "
            f"{mean_best_iou(sizes, fixed):.3f}; {listed} px")
