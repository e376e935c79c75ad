"""From a Conversation to TokenizedExamples with exact loss masks.

`overflow` makes examples of at most `max_seq_len` tokens. It calls `shortcut` for the texts to
train on. `shortcut` calls `turns` if it can't prove that its faster method is correct.
`turns` finds the assistant's turns in the text that `render` makes with the chat template.
`encode` turns texts and their target characters into token ids and loss masks.
"""
