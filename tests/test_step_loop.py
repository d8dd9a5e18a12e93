"""The loop over the batches of an epoch does what Lightning's own does, in the same order."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dltrain.step_loop import HOOKS, StepLoop

EPOCHS = 2


class Record(pl.Callback):
    """Every hook with the step and the batch, and the loss where there is one."""

    def __init__(self):
        self.calls = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.calls.append(("end", batch_idx, {key: float(value) for key, value in outputs.items()}))
        self.calls.append((trainer.global_step, trainer.current_epoch, trainer.fit_loop.batch_idx,
                           trainer.fit_loop.total_batch_idx, trainer.is_last_batch, dict(trainer.callback_metrics),
                           trainer.optimizers[0].param_groups[0]["lr"]))
        if trainer.global_step >= 7:
            trainer.should_stop = True

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.calls.append(("start", batch_idx, batch[0].sum().item()))

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.calls.append(("zero", trainer.global_step))

    def on_before_backward(self, trainer, module, loss):
        self.calls.append(("before", loss.item(), loss.requires_grad))

    def on_after_backward(self, trainer, module):
        self.calls.append(("after", module.net.weight.grad.sum().item()))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.calls.append(("step", type(optimizer).__name__))

    def on_validation_end(self, trainer, module):
        self.calls.append(("validated", trainer.global_step, trainer.callback_metrics["val"].item()))


class Module(pl.LightningModule):
    """A net of one layer on ten batches."""

    optimizer: Any = torch.optim.SGD

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 2)
        self.calls = []

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def on_before_zero_grad(self, optimizer):
        self.calls.append(("own zero", self.global_step))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.calls.append(("own end", batch_idx, self.global_step))

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Logs(Module):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train", loss, on_step=True, on_epoch=True, prog_bar=True)
        return {"loss": loss, "more": loss.detach() * 2}


class Skips(Module):
    """No loss for the second batch."""

    def training_step(self, batch):  # type: ignore[override]
        return None if self.trainer.fit_loop.batch_idx == 1 else super().training_step(batch, 0)


class Ends(Module):
    """Ends each epoch before its fourth batch."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 3 else None


class Lbfgs(Module):
    optimizer = torch.optim.LBFGS


class ByItself(Module):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        self.calls.append(("own step", batch_idx))
        optimizer.step(closure=optimizer_closure)


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class EveryEpoch(Module):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


class Transfers(Module):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 1, batch[1]]


def fit(kind, tmp_path, own, **keys):
    torch.manual_seed(1)
    data = DataLoader(TensorDataset(torch.randn(20, 3), torch.randint(0, 2, (20,))), batch_size=4)
    record, module = Record(), kind()
    trainer = pl.Trainer(accelerator="cpu", max_epochs=EPOCHS, logger=pl.loggers.CSVLogger(tmp_path / str(own)),
                         callbacks=[record], enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=2, **keys)
    if own:
        trainer.fit_loop.epoch_loop = StepLoop(trainer)
    trainer.fit(module, data, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    logged = sorted(file.read_text() for file in tmp_path.rglob("metrics.csv") if f"/{own}/" in str(file))
    return (record.calls, module.calls, saved["loops"], saved["lr_schedulers"],
            {name: value.tolist() for name, value in saved["state_dict"].items()}, logged)


@pytest.mark.parametrize("keys", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
                                  {"precision": "64-true"}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize("kind", [Module, Logs])
def test_it_does_what_lightnings_own_does(kind, keys, tmp_path):
    assert fit(kind, tmp_path, True, **keys) == fit(kind, tmp_path, False, **keys)


@pytest.mark.parametrize("kind", [Skips, Ends, Lbfgs, ByItself, Manual, EveryEpoch, Transfers])
def test_so_does_it_for_an_unusual_task(kind, tmp_path):
    assert fit(kind, tmp_path, True) == fit(kind, tmp_path, False)


def test_every_hook_is_recorded():
    assert all(name in vars(Record) for name in HOOKS)
