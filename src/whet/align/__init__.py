"""A refined classifier as the reward of reinforcement learning, beside the arms it is judged by."""
