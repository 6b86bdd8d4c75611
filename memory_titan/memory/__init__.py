"""What a memory is, and the memories."""
