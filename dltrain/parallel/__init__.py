"""How several processes train as one would with the batch of all of them."""
