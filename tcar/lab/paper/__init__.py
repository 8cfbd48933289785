"""Tables, sentences and the document, from result files alone."""
