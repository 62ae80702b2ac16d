"""The playground: a page in the browser that decodes a sentence by every mode of a model, side by side."""
