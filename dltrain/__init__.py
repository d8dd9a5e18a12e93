"""dltrain: train deep learning's classic systems from one command."""
