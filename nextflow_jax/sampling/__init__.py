"""Sampling from a bundle: text and pictures continue a document, text token by token, pictures scale by scale."""
