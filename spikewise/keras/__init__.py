"""The adapters to Keras: the callback for `model.fit`, and the data and models of Keras in the form that the diagnosis needs."""
