"""The experiments on slots: long dependencies, continual learning, learned forgetting. One file each."""
