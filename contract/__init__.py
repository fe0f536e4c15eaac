"""What edge and inference share besides the generated stubs: parameters, limits and refusals.

The edge repeats checks of the inference service, to refuse early and in the same words. Whatever
both must agree on stands here once.
"""
