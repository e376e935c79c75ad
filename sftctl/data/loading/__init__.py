"""From a step of the plan to tensors: the micro-batches, the processes that make them."""
