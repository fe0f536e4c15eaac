"""How the image model in the box was trained, and the sheet that shows what it draws.

Run in this order, each with --help: training.vae (rarely), training.data, training.unet, and, with
`isthmus up` running, training.contact_sheet.
"""
