"""The scripts that medxfer is compared with, and what they are given: the same files, split, weights and sizes."""
