"""How long scoring takes on checkpoints of real shapes, against reading them and against the direct product."""
