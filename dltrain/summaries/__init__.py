"""What a model is made of: its stages and layers, what they compute and which pixels they see, and its paper."""
