"""Random transforms of whole batches on the device. Each sample has its own random parameters."""
