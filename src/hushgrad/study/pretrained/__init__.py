"""Pretrained models of sentences in a folder of Hugging Face's, of which a part or all is trained further."""
