"""Golden files: the results, the files and the interface that users rely on, as an earlier commit had them."""
