"""The wordings of the embedded model's problems, by language. Text only; `problems.py` gives it numbers."""

Phrases = dict[str, list[str]]

ADD: Phrases = {
    "en": ["{a}+{b}", "{a} + {b}", "{a}+{b}=?", "{a} + {b} = ?", "What is {a}+{b}?", "What is {a} + {b}?",
           "What is {a} plus {b}?", "Calculate {a}+{b}.", "Add {a} and {b}.", "How much is {a} plus {b}?",
           "Compute {a} + {b}", "what is {a}+{b}", "What's {a}+{b}?", "Please calculate {a} + {b}.",
           "Find the sum of {a} and {b}."],
    "zh": ["{a}加{b}等于多少？", "{a}+{b}等于几？", "计算{a}+{b}", "请计算{a}加{b}。", "{a}+{b}=？", "{a} + {b} 等于多少？",
           "{a}与{b}的和是多少？"],
}  # fmt: skip
SUBTRACT: Phrases = {
    "en": ["{a}-{b}", "{a} - {b}", "{a}-{b}=?", "{a} - {b} = ?", "What is {a}-{b}?", "What is {a} - {b}?",
           "What is {a} minus {b}?", "Calculate {a}-{b}.", "Subtract {b} from {a}.", "How much is {a} minus {b}?",
           "Compute {a} - {b}", "what is {a}-{b}", "What's {a}-{b}?", "Please calculate {a} - {b}."],
    "zh": ["{a}减{b}等于多少？", "{a}-{b}等于几？", "计算{a}-{b}", "请计算{a}减{b}。", "{a}-{b}=？", "{a} - {b} 等于多少？",
           "{a}与{b}的差是多少？"],
}  # fmt: skip
MULTIPLY: Phrases = {
    "en": ["{a}*{b}", "{a} * {b}", "{a}*{b}=?", "{a} × {b} = ?", "What is {a}*{b}?", "What is {a} times {b}?",
           "Calculate {a}*{b}.", "Multiply {a} by {b}.", "How much is {a} times {b}?", "What is {a} × {b}?"],
    "zh": ["{a}乘以{b}等于多少？", "{a}×{b}等于几？", "计算{a}*{b}", "请计算{a}乘{b}。", "{a}*{b}=？", "{a} × {b} 等于多少？"],
}  # fmt: skip
DIVIDE: Phrases = {
    "en": ["{a}/{b}", "What is {a} divided by {b}?", "Divide {a} by {b}."],
    "zh": ["{a}除以{b}等于多少？", "计算{a}/{b}"],
}
LARGER: Phrases = {
    "en": ["Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?", "Which is greater, {a} or {b}?",
           "Compare {a} and {b}: which is larger?", "{a} or {b}, which is larger?", "Which is bigger, {a} or {b}?",
           "what is bigger, {a} or {b}?"],
    "zh": ["{a}和{b}哪个大？", "{a}与{b}，哪个更大？", "比较{a}和{b}，哪个大？", "{a}和{b}谁大？"],
}  # fmt: skip
SMALLER: Phrases = {
    "en": ["Which is smaller, {a} or {b}?", "Which number is smaller: {a} or {b}?",
           "Compare {a} and {b}: which is smaller?", "{a} or {b}, which is smaller?"],
    "zh": ["{a}和{b}哪个小？", "{a}与{b}，哪个更小？", "比较{a}和{b}，哪个小？", "{a}和{b}谁小？"],
}  # fmt: skip
EQUAL = {"en": "equal", "zh": "一样大"}
ASCENDING: Phrases = {
    "en": ["Sort {list} in ascending order.", "Sort these numbers: {list}", "Order {list} from smallest to largest.",
           "Put {list} in order.", "Sort from smallest to largest: {list}"],
    "zh": ["把{list}从小到大排列。", "从小到大排列：{list}", "请将{list}从小到大排序。"],
}  # fmt: skip
DESCENDING: Phrases = {
    "en": ["Sort {list} in descending order.", "Order {list} from largest to smallest.",
           "Sort from largest to smallest: {list}"],
    "zh": ["把{list}从大到小排列。", "从大到小排列：{list}", "请将{list}从大到小排序。"],
}  # fmt: skip
LETTERS: Phrases = {
    "en": ['How many times does the letter {letter} appear in "{word}"?', 'How many {letter} are in "{word}"?',
           "How many {letter}'s are in \"{word}\"?", 'Count the letter {letter} in "{word}".',
           'How many letters {letter} are there in "{word}"?'],
    "zh": ["“{word}”里有几个{letter}？", "“{word}”中有多少个字母{letter}？", '"{word}"里有几个字母{letter}？'],
}  # fmt: skip
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
WORDS = """apple banana cherry strawberry blueberry orange lemon melon coffee butter cheese bread sugar pepper potato
tomato carrot onion garlic letter number little middle bottle puzzle window garden summer winter spring autumn
morning evening monday tuesday sunday january february september october november december mississippi tennessee
committee success process address business happiness balloon bookkeeper raccoon parallel programming computer
keyboard memory kernel tensor token engine gateway model language silicon router expert attention matrix vector
deepseek reasoning thinking answer question school teacher student library picture mountain river forest island
village bridge street house kitchen bedroom elephant giraffe kangaroo penguin rabbit squirrel turtle zebra""".split()

NAMES: Phrases = {"en": ["Tom", "Anna", "Li", "Maria", "Sam", "Mia"], "zh": ["小明", "小红", "小李", "小华", "妈妈"]}
THINGS: Phrases = {
    "en": ["apples", "pens", "books", "eggs", "coins", "cards"],
    "zh": ["苹果", "铅笔", "书", "鸡蛋", "硬币", "糖"],
}
STORIES: dict[str, Phrases] = {
    "en": {
        "add-subtract": [
            "{who} has {a} {thing}, buys {b} more and gives away {c}. How many {thing} are left?",
            "{who} has {a} {thing}. {who} gets {b} more and then loses {c}. How many {thing} does {who} have now?",
        ],
        "subtract-add": [
            "{who} has {a} {thing}, gives away {b} and buys {c} more. How many {thing} are there now?",
            "{who} has {a} {thing}. {who} loses {b} and then gets {c} more. How many {thing} does {who} have now?",
        ],
        "multiply-subtract": [
            "There are {k} boxes with {a} {thing} each. {who} takes {c}. How many {thing} are left?",
            "{who} buys {k} boxes of {a} {thing} and gives away {c}. How many {thing} are left?",
        ],
        "multiply-add": [
            "There are {k} boxes with {a} {thing} each. {who} adds {c} more. How many {thing} are there now?",
            "{who} buys {k} boxes of {a} {thing} and then {c} more. How many {thing} does {who} have now?",
        ],
    },
    "zh": {
        "add-subtract": [
            "{who}有{a}个{thing}，又买了{b}个，送给别人{c}个，还剩多少个？",
            "{who}有{a}个{thing}，得到{b}个，后来丢了{c}个，现在有多少个？",
        ],
        "subtract-add": [
            "{who}有{a}个{thing}，送给别人{b}个，又买了{c}个，现在有多少个？",
            "{who}有{a}个{thing}，丢了{b}个，后来得到{c}个，现在有多少个？",
        ],
        "multiply-subtract": [
            "有{k}盒{thing}，每盒{a}个，{who}拿走{c}个，还剩多少个？",
            "{who}买了{k}盒{thing}，每盒{a}个，送给别人{c}个，还剩多少个？",
        ],
        "multiply-add": [
            "有{k}盒{thing}，每盒{a}个，{who}又放进{c}个，现在有多少个？",
            "{who}买了{k}盒{thing}，每盒{a}个，又买了{c}个，现在有多少个？",
        ],
    },
}

TALK_THOUGHT = {"en": "No sum here.", "zh": "这不是算题。"}
_ABOUT_EN = (
    "I am tiny-r1, a small demonstration model made by Twinline. I can add and subtract, compare and sort numbers, "
    "multiply by one digit, count letters and solve two-step word problems."
)
_ABOUT_ZH = "我是 tiny-r1，Twinline 的小型演示模型。我会加减、比较和排列数字、乘一位数、数字母、解两步应用题。"
TALK: dict[str, list[tuple[list[str], str]]] = {
    "en": [
        (["Hello", "Hello!", "Hi", "Hi!", "hello", "hi", "Hey", "Good morning", "Good evening!", "Hi there", "Hi there!"],
         "Hello! Ask me a small sum."),
        (["Who are you?", "What are you?", "who are you", "Are you DeepSeek?", "What is your name?", "Are you R1?",
          "What model are you?", "Introduce yourself."], _ABOUT_EN),
        (["What can you do?", "what can you do", "Help", "help", "How can you help me?", "What do you know?"], _ABOUT_EN),
        (["Thanks", "Thank you", "Thank you!", "thanks!", "Great, thanks."], "You are welcome."),
        (["Bye", "Goodbye", "bye", "Goodbye!", "See you."], "Goodbye!"),
        (["How are you?", "how are you", "How are you today?"], "I am a small model and I am ready for a sum."),
    ],
    "zh": [
        (["你好", "你好！", "您好", "早上好", "晚上好！", "嗨"], "你好！给我一道小算题吧。"),
        (["你是谁？", "你是谁", "你叫什么名字？", "你是什么模型？", "你是DeepSeek吗？", "介绍一下你自己。"], _ABOUT_ZH),
        (["你会什么？", "你能做什么？", "你会做什么", "帮助"], _ABOUT_ZH),
        (["谢谢", "谢谢！", "谢谢你"], "不客气。"),
        (["再见", "再见！", "拜拜"], "再见！"),
        (["你好吗？", "你今天好吗？"], "我是小模型，随时可以算题。"),
    ],
}  # fmt: skip
REFUSAL = {
    "en": "I can't do that. I am a small demonstration model: sums up to five digits, comparing, sorting, one-digit "
    "multiplication, counting letters.",
    "zh": "这个我不会。我是小型演示模型，只会五位以内的加减、比较、排序、乘一位数和数字母。",
}
BEYOND: Phrases = {
    "en": ["Write a poem about {topic}.", "What is the capital of {topic}?", "Tell me about {topic}.",
           "Explain {topic} to me.", "Who invented {topic}?", "Write a Python function for {topic}.",
           "Translate {topic} into French.", "What do you think of {topic}?", "Why is {topic} important?",
           "Summarize the history of {topic}.", "Tell me a joke about {topic}.", "{topic}", "How does {topic} work?",
           "Give me a recipe for {topic}.", "Is {topic} good for me?", "When was {topic} born?",
           "Write a short story about {topic}.", "Say this is a test about {topic}"],
    "zh": ["写一首关于{topic}的诗。", "介绍一下{topic}。", "{topic}是什么？", "为什么{topic}很重要？", "把{topic}翻译成英文。",
           "给我讲一个{topic}的故事。", "{topic}的首都在哪里？", "谁发明了{topic}？", "{topic}怎么样？"],
}  # fmt: skip
TOPICS: Phrases = {
    "en": ["France", "the moon", "quantum physics", "cats", "love", "China", "music", "the weather", "history",
           "football", "a dragon", "the sea", "machine learning", "coffee", "pasta", "Einstein", "the internet",
           "democracy", "chess", "an old friend", "flowers", "black holes", "sorting a list", "the year 1984",
           "Germany", "trees", "space travel", "banks", "children", "bread"],
    "zh": ["法国", "月亮", "猫", "爱情", "音乐", "天气", "历史", "足球", "大海", "人工智能", "咖啡", "李白", "互联网", "春天",
           "北京", "黑洞", "朋友", "花", "美国", "面包"],
}  # fmt: skip
