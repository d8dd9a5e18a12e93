"""Batched transforms on whole tensors, each sample with its own draw."""
