"""The trained part that brings the tokens of two streams together."""
