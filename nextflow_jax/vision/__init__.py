"""The vision room: encoders and decoders of pictures, the multi-scale quantizer, the tokenizer, its frozen codec."""
