"""The papers' protocols on data of your own: each leaves a table, a result and a figure."""
