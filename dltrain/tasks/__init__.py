"""One file per kind of problem: its loss, its metrics, what it predicts and the pictures it draws. Each is a
LightningModule that works with any model and any data of its batch type."""
