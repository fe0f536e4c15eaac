"""JSON Schemas as grammars that enforce every keyword; compiler.py is the way in."""
