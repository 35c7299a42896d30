"""Reference cells, and what is told of other cells by comparing them with these.

`cells` holds a `Reference`: embeddings, labels and values of its cells. `index` finds the nearest
of them, `votes` what these vote for, `transfer` labels, `levels` labels from coarse to fine,
`conformity` how much a cell is like those of its label, and `files` keeps a reference in a folder.
"""
