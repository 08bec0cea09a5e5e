"""The adapters to Keras: the callback for `model.fit`, and Keras' data and networks as the diagnosis sees them."""
