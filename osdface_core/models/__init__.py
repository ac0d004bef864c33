"""Networks: the visual prompt, the backbone of the one step, and who is in the picture."""
