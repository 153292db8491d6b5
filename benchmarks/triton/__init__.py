"""Load on a real Triton server; the server comes from nvidia-pytriton's wheel, in an environment of its own."""
