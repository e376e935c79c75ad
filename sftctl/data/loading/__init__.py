"""From a step of the plan to micro-batches (tensors), and the processes that make them."""
