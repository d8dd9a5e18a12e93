"""MLflow: `trainer.loggers=[mlflow]`, in a local SQLite store or on a server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchvision.transforms.functional import to_pil_image

from dltrain.errors import CheckpointError
from dltrain.trackers.tracker import FILE, Tracker

LONGEST = 6000  # characters of a parameter, in MLflow


class MLflow(Tracker):
    """`tracking_uri`: of a server, or of a store, as sqlite:///outputs/mlflow.db; None: what MLFLOW_TRACKING_URI says,
    else mlflow.db beside the run folder. `experiment`: its name there. The run is named as its folder."""

    library = "mlflow"

    def __init__(self, save_dir: str, tracking_uri: str | None = None, experiment: str = "dltrain"):
        super().__init__(Path(save_dir))
        beside = self.folder.absolute().parent
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside}/mlflow.db"
        self.experiment = experiment
        self._client: Any = None

    @property
    def client(self) -> Any:
        """With the run open, a new one unless it is known."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(self.uri)
            if "id" not in self.stored:
                self.keep(id=self.begin(self._client))
            try:
                self._client.update_run(self.stored["id"], status="RUNNING")
            except MlflowException as error:
                raise CheckpointError(f"{self.folder / FILE}: {self.uri} has no run {self.stored['id']} "
                                      f"({str(error).splitlines()[0][:120]}); delete the file, and the run is tracked "
                                      "as a new one") from None
        return self._client

    def begin(self, client: Any) -> str:
        known = client.get_experiment_by_name(self.experiment)
        local = self.uri.startswith("sqlite:")
        place = f"file://{self.folder.absolute().parent}/mlflow_artifacts" if local else None
        number = known.experiment_id if known else client.create_experiment(self.experiment, artifact_location=place)
        return str(client.create_run(number, run_name=self.folder.absolute().name).info.run_id)

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.stored["id"], metrics=[Metric(key, value, now, step)
                                                          for key, value in metrics.items()])

    def send_parameters(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(key, str(value)[:LONGEST]) for key, value in values.items()]
        self.client.log_batch(self.stored["id"], params=parameters)

    def send_figure(self, tag: str, figure: Any, step: int) -> None:
        name = f"{tag}/{step}"
        if isinstance(figure, str):
            self.client.log_text(self.stored["id"], figure, f"{name}.txt")
        else:
            self.client.log_image(self.stored["id"], to_pil_image(figure), f"{name}.png")

    def end(self, is_done: bool, files: Sequence[Path]) -> None:
        for file in files:
            self.client.log_artifact(self.stored["id"], str(file))
        self.client.set_terminated(self.stored["id"], "FINISHED" if is_done else "FAILED")
