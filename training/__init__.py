"""Trains the embedded image model, and makes a sheet of its images.

The order is training.vae (rarely needed), training.data, training.unet and, while `isthmus up`
runs, training.contact_sheet. Each has --help.
"""
