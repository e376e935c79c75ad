"""From a Conversation to TokenizedExamples with exact loss masks.

The way of a row, from the outside in: `overflow` makes examples of at most `max_seq_len` tokens.
It asks `shortcut` for the texts to train on, which asks `turns` where no short cut is proved.
`turns` finds the assistant's turns in the text that `render` makes with the chat template.
`encode` turns texts and their target characters into token ids and loss masks.
"""
