"""What `dltrain check` examines before a training: the model, the data, and whether the one can be trained on the other."""
