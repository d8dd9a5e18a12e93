"""One file per kind of problem: its loss, its metrics, its predictions and its figures. Each is a LightningModule that
works with any data of its batch type and any model that keeps the contract stated there."""
