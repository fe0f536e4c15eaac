"""Code that edge and inference share besides the generated stubs: parameters, limits, refusals,
and how a server process runs.

The edge repeats checks of the inference service, to refuse early and with the same message. This
package defines the parts of both once.
"""
