"""Which pairs does this folder hold?"""
