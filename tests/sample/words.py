"""The words that the bundled sample asks about."""

PLURALS = {
    "dog": "dogs", "tree": "trees", "book": "books", "bird": "birds", "box": "boxes",
    "glass": "glasses", "bus": "buses", "city": "cities", "baby": "babies", "boy": "boys",
    "man": "men", "child": "children", "leaf": "leaves",
}  # fmt: skip
SPELLED = ["cat", "sun", "red", "ten", "sea", "day", "cup", "fish", "milk", "tree", "hat", "pig"]
OPPOSITES = {
    "hot": "cold", "big": "small", "old": "new", "fast": "slow", "high": "low", "long": "short",
    "good": "bad",
}  # fmt: skip
CHINESE_OPPOSITES = {"大": "小", "高": "低", "冷": "热", "快": "慢", "早": "晚"}
TRANSLATIONS = {
    "water": "水", "fire": "火", "tree": "树", "mountain": "山", "river": "河", "rain": "雨",
    "dog": "狗", "cat": "猫", "bird": "鸟", "book": "书", "friend": "朋友", "tea": "茶",
}  # fmt: skip
CITIES = [
    "Paris",
    "Cairo",
    "Rome",
    "Oslo",
    "Lima",
    "Delhi",
    "Tokyo",
    "Seoul",
    "Berlin",
    "Madrid",
    "London",
    "Vienna",
]
SKIES = ["sunny", "cloudy", "windy", "rainy", "snowy", "foggy"]

GREETINGS = [
    ("Hello!", "Hello! Ask me a question."),
    ("Hi!", "Hello! Ask me a question."),
    ("你好！", "你好！请问我一个问题。"),
    ("Thank you!", "You are welcome."),
    ("谢谢！", "不客气。"),
    ("Who are you?", "I am a small model, trained with sftctl."),
    ("你是谁？", "我是一个用sftctl训练的小模型。"),
    ("What can you do?", "I can add, spell and count, and I know plurals and opposites."),
    ("你会什么？", "我会加法，会数数，也会一点英文。"),
]
