"""What a run takes before it starts: `sizes` in bytes, `hours` from speeds that somebody measured.

What nobody measured is said to be unknown.
"""
