"""`python -m train explain`: pictures of what a network says of one photo as it shifts."""
