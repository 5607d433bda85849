"""Patterns for the words around an answer that announce, deny, change or comment on it, in English and other languages.

Every pattern takes linear time on text with collapsed white space: adjacent repeats never match the same characters.
"""

from __future__ import annotations

import re

# ---- what announces an answer

_EDGE = r"(?<![^\W_])(?:{})(?![^\W_])"  # a word between any punctuation
_ANSWER = re.compile(
    _EDGE.format(r"answers?|ans(?:\.|\b)|result")
    + r"(?:(?: ?\([^()\n]{1,40}\)| (?:to|for|of|in) [^.:=\n]{1,80}?)?[ \n]?(?:[-=]{1,2}>|:-?|=|→|⇒"
    r"|,? ?(?<!\w)(?:is|are|was|comes out (?:to|as)|turns out to be|becomes|equals|(?:would|must|should"
    r"|will) be)(?!\w)"
    r"(?: (?:equal to|therefore|thus|then|simply|just|indeed|now))?[ \n]?:?)| [-–—] (?=[\d$\\])|(?= [\d$\\-]))"
    # The same in other languages that are common in completions.
    r"|"
    + _EDGE.format("respuesta|solución|réponse|antwort|lösung|ergebnis|resposta|risposta|ответ")
    + r"(?:(?: [^\W\d]{1,20}){0,3}?,? ?(?:[:=–-]|(?<= )(?:es|est|ist|lautet|wäre|é|è|это)(?!\w) ?:?)|(?= ?[\d$\\-]))"
    r"|(?<![不未没])(?:答案|答え)[^\n\d。，,不非没沒]{0,6}?(?:是|为|為|は|[:：=])[:：]?|(?:故选|因此选|选择)[:：]?"
    r"|(?:정답|답)(?:은|는)?[ :：]?",
    re.IGNORECASE,
)
_OTHERWISE = re.compile(
    r"(?<!#)#{4,8} ?(?=[^\s#])|^[ >-]{0,4}A: ?"
    r"|^[#> ]{0,6}(?:[Tt]he |[Mm]y )?(?:[Ff]inal |FINAL |[Cc]orrect )?(?:[Aa]nswer|ANSWER) ?$",
    re.MULTILINE,
)
OPTIONS = re.compile(r"^[ >-]{0,4}B:|\bA: ?[^\n]{1,40} B:", re.MULTILINE)
_CHOSEN = re.compile(
    r"\b(?:(?:option|choice|letter|alternative)(?: is|:)"
    r"|(?:choose|select|pick|go with)(?= (?:option |choice )?\(?[A-Z]\b))",
    re.IGNORECASE,
)


_LETTER_NEXT = re.compile(r"^[ >-]{0,4}A: ?\W{0,4}[A-Z](?![A-Za-z])", re.MULTILINE)


def announcements(text: str, *, choice: bool = False) -> list[tuple[int, int]]:
    """Start and end of every phrase that announces an answer: ``the answer is``, ``####``, ``la respuesta es``. With
    ``choice``, also of those that announce an option: ``the option is``, ``I choose``.
    """
    patterns = (_OTHERWISE, _ANSWER, _CHOSEN) if choice else (_OTHERWISE, _ANSWER)
    found = [mark.span() for pattern in patterns for mark in pattern.finditer(text)]
    if OPTIONS.search(text) or (choice and not _LETTER_NEXT.search(text)):  # then "A:" is an option, too
        found = [(start, end) for start, end in found if "A:" not in text[start:end]]
    return sorted(found)


def _any(*alternatives: str, before: str = "", after: str = "") -> re.Pattern[str]:
    return re.compile(f"{before}(?:{'|'.join(alternatives)}){after}", re.IGNORECASE)


# ---- what denies an answer

_NOT = (
    r"\b(?:not|never|neither|nor|cannot|anything but|all but|rather than|instead of|other than)\b",
    r"\b(?:except|excluding|without)\b",
    r"n['’]t\b|\\neq?(?![A-Za-z])|≠|!=|¬|\\(?:neg|lnot)(?![A-Za-z])",
)
_FOREIGN = (
    r"不是|绝不|不等|不为|不会|並非|并非|错误|아니|아닙|ではな|じゃな|ありません|नहीं|ไม่|אינ|לא |ليس|لا يساوي|نیست|নয",
    r"(?<!\w)(?:no (?:es|son|era|puede)|n['’]est|nicht|kein\w{0,7}|niemals|jamais|jamás|nunca|nu (?:este|e))(?!\w)",
    r"(?<!\w)(?:não|non(?!-)|niet|nie|není|не|ні|δεν|değil|bukan)(?!\w)",
    r"(?<!\w)(?:không|inte|ikke|ei ole|nem|faux|fausse|falso|falsa|falsch|errad[oa]|incorrect[oa]"
    r"|sbagliat[oa])(?!\w)",
    r"(?<!\w)(?:неверн|неправильн|błędn)|(?<!\w)(?:yanlış|sai|fout|fel)(?!\w)|不对|不對|错的|錯|間違|틀리|틀렸|خطأ|गलत|ผิด"
    r"|ভুল|غلط|שגוי",
    r"(?<!\w)(?:невірн|špatn|forkert|helytelen|greșit|väärin|λάθος|salah(?!\w))",
)
NOT_FOREIGN = _any(*_FOREIGN)
NOT = _any(*_NOT, *_FOREIGN)
_OPENS = r"[\s:$*\\(\[{\"']{0,4}\Z"
# Right before the answer.
NOT_BEFORE = _any(
    *_NOT,
    *_FOREIGN,
    after=r"(?: (?:equal(?: to)?|be|is|exactly|simply|just|necessarily|the answer|:))*+" + _OPENS,
)
# Before an announcement or an answer, in its sentence.
SUPPOSED = _any(
    r"\b(?:if|whether|unless|suppose|supposing|assum\w{1,4})(?: that)?"
    r"(?: (?:the|my|its?|correct|final|right|best)){0,3} \Z",
    r"\b(?:doubt\w{0,3}|deny|nobody|(?:unlikely|false|wrong|untrue)(?= that))\b[^.!?,;\n]{0,60}\Z",
    r"\b(?:\w{2,6}n['’]t|not|never) (?:think|believe|say|claim|mean|true|correct|the case)\b[^.!?,;\n]{0,60}\Z",
    r"\b(?:if only|(?:many|some|people|others|someone)(?: (?:would|might|may|could))? (?:say|think|claim"
    r"|believe)s?)\b"
    r"[^.!?,;\n]{0,60}\Z",
    r"(?<!\w)(?:(?:glaube|denke) nicht|bezweifle|no creo|dudo|ne (?:crois|pense) pas|doute|não (?:acho|creio"
    r"|acredito)"
    r"|non (?:credo|penso)|не (?:думаю|считаю)|сомневаюсь)(?!\w)[^.!?;\n]{0,60}\Z",
)
# Soon before a box or a value.
WRONG_BEFORE = _any(
    r"(?:rul(?:e|es|ed|ing) out|(?:wrong|incorrect) answers?|(?:common|typical) (?:mistake"
    r"|error))\b[^.!?\n]{0,30}\Z",
    r"(?:wrong|incorrect):? \Z",
    before=r"\b",
)
# In a comment on an answer.
UNSURE = _any(
    r"(?:might|may|could) (?:also )?be (?=[-$\d])|(?:is|are) also (?:possible|correct|valid|right|acceptable)\b",
    before=r"\b",
)
# Before "answer".
NO_FINAL = _any(r"\b(?:wrong|incorrect|false|worst|first|second|third|other|another|alternative|(?<!only )possible) \Z")
WRONG = _any(
    r"n['’]t\b",
    r" (?:\w{1,15}ly )?(?:not|wrong|incorrect|false|impossible)\b",
    before=r"\b(?:is|are|was|were|would be|seems?|looks?)",
)
# After it: "is wrong", "which is not the answer", "? No.", "Wait, …", "Actually, …".
TAKEN_BACK = _any(
    r"\?|？",
    r"no,? wait\b",
    r"(?:no|wait|nope|oops|hmm|actually|scratch that|just kidding|on second thought|sorry|psych)\b[,.!:…)]",
    r"(?:edit|update)d?:|actually,? (?:the|it|I)\b|except (?:that )?it|(?:that|this|it) contradicts",
    r"(?:correction|corrected|apologies|or rather|make (?:that|it))\b",
    r"(?:I|they|he|she|you|we|those|these) (?:am|are|is|was|were) (?:\w{1,15}ly )?(?:wrong|mistaken|incorrect)\b",
    r"(?:(?:but|however),? )?(?:(?:which |(?:that|it|this) )?(?:is|was|are|would be|seems|looks)|(?:that|it)['’]s)"
    r" (?:(?:an?|the) (?:\w{1,15} )?(?:lie|guess|mistake|error|trap|distractor)|too \w{1,15}"
    r"|what (?:an?|most|many|some|people|others|you|they)"
    r"|(?:an? |the )?(?:\w{1,15}ly )?(?:not|wrong|incorrect|false|impossible))\b",
    r"(?:which |(?:but )?(?:that|it|this) )?(?:is|was|are)n['’]t\b",
    r"(?:(?:but |however,? )?(?:that|it|this) )?(?:ca|could|must|should|may|might)(?:n['’]t|n?not| not)\b",
    r"(?:can be|is|was) (?:ruled out|excluded|eliminated|rejected)",
    r"❌|✗|✘|strike that|I (?:retract|take (?:it|that|this) back|am (?:not|un) ?sure)|I['’]m (?:not |un)sure"
    r"|none of (?:this|that)\b",
    r"(?:but |on reflection,? |perhaps |maybe |it (?:may|might|could) be )(?:actually,? )?(?:(?:it is"
    r"|it['’]s) )?(?=[-$\d])",
    r"negative\b(?=\W*\Z)|times (?:two|three|\d)|(?:hundred|thousand|million|billion)\b(?=\W*\Z)|or is it\b",
    r"\(?(?:wrong|incorrect|false)\b(?! (?:answers?|questions?|responses?|guesses|statements?)\b)",
    r"(?:definitely )?not[.!]{0,3}\Z",
    before=r"[\s$.*()\]}\"'\\!,—–-]{0,6}+",
)
# The start of a further sentence or line that adds another.
ADDED = _any(
    r"\+ ?\d|(?:hundred|thousand|million|billion)\b(?=\W*\Z)|(?:or|alternatively),?[ \n](?:(?:is it|it is|maybe"
    r"|perhaps) )?(?=[-$\\\d]|\(?[A-Z]\)?\W?\Z)",
    before=r"[\s$.*]{0,6}+",
)
# Anywhere soon after it.
REFUTED = _any(
    r"(?:I|they|he|she|you|we|those|these) (?:am|are|is|was|were) (?:\w{1,15}ly )?(?:wrong|mistaken|incorrect)",
    before=r"[.!] ",
    after=r"\b",
)
GAVE_UP = _any(
    r"give up",
    r"(?:do not|don['’]t) know",
    r"(?:cannot|can['’]t) (?:say|tell|answer|solve)",
    before=r"\bI ",
    after=r"\b",
)

# ---- what changes the value of an answer

OR = re.compile(
    r"(?<!\w)(?:or|oder|ou|o|или|либо|або|hoặc|atau|veya|أو|या|או|หรือ|অথবা|یا|lub|nebo|eller|tai|vagy|sau|ή)(?!\w)"
    r"|か|(?<=^ )(?:y|und|et|e|и)(?= \Z)|或|または|또는",
    re.IGNORECASE,
)
GUESSES = re.compile(
    r"(?:^[*\- ]{0,4}|[.;,] )"
    r"(?:option|guess|candidate|possibility|attempt|alternative|choice|try) ?#?(?:\d|[A-Z]\b|one\b|two\b)"
    r"|^(?:first|second|third|fourth|last):? [$\d.,]{1,20}[.;]?$",
    re.IGNORECASE | re.MULTILINE,
)
NOT_BUT = re.compile(r"\Anot [^,.;]{1,40}?,? but (?:rather )?", re.IGNORECASE)
CHANGED_BEFORE = _any(
    r"\b(?:roots?|opposite|reciprocal|inverse|square|cube|double|triple|logarithm|half|third|quarter|factorial) of",
    r"\b(?:multiples?|divisors?|factors?|complement|one|some|any|either|each|out|that) of",
    r"\b(?:twice|half|double|triple|thrice|between|at (?:least|most)|up to|over|under|above|below|almost|nearly)",
    r"\b(?:divisible by|ends? (?:in|with)|(?:predecessor|successor|digit sum) of|number (?:before|after)|divides)",
    r"\b(?:from|near|mod|modulo|close to|next to|\w{2,12}(?:er|re|ss) than|exceeds?|differs? from)",
    r"\b(?:(?:reject|exclud|eliminat|discard|avoid)(?:|e|s|es|ed|ing)|rul(?:e|es|ed|ing) out)",
    r"\b(?:all|every\w{0,5}|any\w{0,5}|none|no)\b[^.!?,\n]{0,20} but",
    r"\b(?:could|might|may|supposed to) be|\bexpect|\bquite|\b(?:might|would|could) think(?: that)? it is",
    r"\bat first (?:glance|sight),? it (?:is|was|seems)|\d ?(?:à|до|から|至|到) ?",
    r"(?<!\w)(?:bis zu|jusqu['’]à|hasta|fino a|até|(?:menor|mayor|maior|inferior|superior) (?:que|a)"
    r"|(?:größer|kleiner) als|(?:maggiore|minore) di|(?:inf|sup)érieure? à|ít hơn|nhiều hơn|(?:lebih|kurang) dari"
    r"|(?:mniej|więcej) niż|(?:méně|více) než|(?:mindre|mer|mera|flere) (?:än|enn|end)|(?:kevesebb|több) mint"
    r"|mai (?:mult|puțin) de|(?:μικρότερο|μεγαλύτερο|λιγότερο) από|أقل من|أكثر من)",
    r"(?<!\w)(?:mindestens|höchstens|beinahe|unter|über|al menos|casi|au (?:moins|plus)|presque|almeno"
    r"|al massimo|quasi"
    r"|como (?:máximo|mínimo)|(?:pelo|ao) menos|no máximo|quase|tussen|zwischen|minst|minder dan|meer dan|ít nhất"
    r"|(?:más|plus|mais|più|menos|moins|meno|mehr|weniger) (?:de|als|di|do que)|больше|меньше|более|менее|почти"
    r"|между)",
    r"至少|最多|超过|超過|少于|大于|小于|不到|接近|최소|최대|अधिकतम|न्यूनतम",
    r"(?<!\w)(?:doble|mitad|double|moitié|doppelte|hälfte|doppio|metà|dobro|metade|половин\w"
    r"|удвоенн\w{1,3}) (?:de|von|di|от)",
    r"(?:两|二|三|四|五|[2-9])个 ?",
    r"(?<!\w)(?:von|de|da|van|od|от|с) [\d$.,]{1,20} (?:a|à|bis|до|по|tot|do|até)",
    after=_OPENS,
)
BOUND = _any(r"\b(?:from|exceeds?|at (?:least|most)|up to|over|under)", after=_OPENS)
CHANGED_AFTER = _any(
    r"or\b(?! (?:exactly|about|approximately|equivalently|simply|just|in)\b)",
    r"and (?:up|more|above|over|counting|below|higher|lower|beyond)\b",
    r"(?:if not|at most|at least|squared|cubed|factorial|doubled|tripled|halved|maybe|perhaps|possibly)\b",
    r"-?ish\b|より|보다|개 (?:이상|이하)|से (?:कम|अधिक|ज़्यादा)",
    r"个?以上|的(?:平方|立方|阶乘|一半|[^\d\n。]{0,3}倍)|分之|의 ?(?:제곱|세제곱|절반|두 배)"
    r"|の(?:二乗|半分)|в (?:квадрате|кубе)|и (?:больше"
    r"|более)",
    r"(?:au (?:carré|cube)|a[lo] (?:cuadrado|quadrado|quadrato|cubo)|zum quadrat|hoch)\b",
    r"之间|之間|以上|以下|以内|以外|未満|の間|の[^\d\n]{0,3}倍|사이|에서|이상|이하|미만",
    r"(?:\w{1,9} |°[CF]? )?below zero\b",
    r"give or take|plus or minus|more or less|to the (?:power|\w+(?:th|rd|nd))\b|times (?=[\d$\\])|\.\.\.|…|\?",
    before=r"[\s$*)\]},\\]{0,4}",
)

# ---- what only comments on an answer

_SPAN = r"(?:hours?|minutes?|seconds?|days?|weeks?|feet|foot|inch(?:es)?|pounds?|ounces?|yards?)"
_FUNCTION = r"(?:sqrt|pi|log|ln|sin|cos|tan|exp|half|one|two|three|four|five|six|seven|eight|nine|ten)\b"
NOTE = _any(
    r",? (?:up|down) from (?=[$\d\0])",
    r"(?<=[\d\0)}]),? (?:and )?(?:it is |which is )?(?:attained|achieved|reached|occurring|which occurs)\b",
    r"(?<=[\d\0)a-z]),? (?:obtained|calculated|computed|consisting|made up) ",
    r"(?<=[\d\0)a-z]),? (?:after|by|when (?:we|you)) (?:add|subtract|multiply|multiplying|divid|simplify|round)",
    r", (?:the (?:sum|product|difference|quotient) of|with \d{1,9} [a-z]{1,15} and \d)",
    rf" \((?:\d{{1,4}} {_SPAN},? ?(?:and )?){{2,3}}\)|, or (?:\d{{1,4}} {_SPAN},? ?(?:and )?){{2,3}}[.!]?\Z",
    r"(?<=[\da-z]) \(\d{1,9} ?(?:[a-z]|[-+*×] ?\d)(?![^()]*\b(?:or|maybe|possibly|perhaps"
    r"|not)\b)[^()=]{0,60}\)[.!]?\Z",
    r",? (?:- )?(?:which(?! (?:means|leaves|makes|gives))|because|since|where|given that|so that(?!['’]s)|due to"
    r"|including)\b",
    r",? as (?:the|it|we|this|there|that|required|expected|desired|shown)\b|(?<=[\d$),]) as \d",
    r", (?:i\.?e\b|that is|namely)|,? i\.?e\.?,? (?=[a-z])|,? (?:that is,|namely)",
    r", (?:and )?(?:not|isn['’]t|no|non|nicht|não|pas)\b",
    r", (?:of course|indeed|right|I (?:think|believe|guess)|thanks|thank you|QED)\b(?!,? or\b)",
    r", (?:obvious|clear|certain|sure|definite|exact|precise|final|evident|natural|undoubted|simp|real|tru)ly\b",
    r" ?\((?:since|because|as|for|given|using|from|by|i\.?e\.?|that is|rounded|exactly|note|see)\b(?! (?:=|mod))",
    r"(?: \(|, or )(?:approximately|approx\.?|about|roughly|≈) ?(?=\d)",
    r" ?\((?:where|which|so|if|when|not|just|wrong|incorrect)\b",
    r"(?<=\d) \(\d{1,9} [a-z]{2,20} (?:of|at|per|by|times|plus) \d{1,9}[^()\n]{0,20}\)\Z",
    r" ?[✓✔✅🎉■□∎]",
    rf" (?:—|–|--+) (?!{_FUNCTION})(?=[A-Za-z]{{2}})",
    r" ?(?:因为|因為)",
)
# Of "the price rose from 100 to 144" only the part after "to" counts.
CHANGE = re.compile(
    r"\b(?:increas|decreas|ris|rose|dropp|drop|fell|chang|grew|went"
    r"|reduc)\w{0,4}\b[^.\n]{0,20} from [$\d.,%]{1,20} to (?=[$\d])"
)
# Of "the maximum is 12 at x = 3" only the part before "at".
EXTREMUM = re.compile(r"\b((?:min|max)imum\b[^.,\n]{0,60} (?:is|=|equals) [^\s]{1,30}) (?:when|at) \$?[a-z] ?=[^.\n]*")
REMARK = _any(
    r"note|n\.b\.|nb|p\.s|remark|check(?:ing)?|verification|verify|hint|let me know|feel free|(?:I )?hope",
    before=r"[*_(> ]{0,4}",
    after=r"\b",
)
LEAD = _any(
    r"so|thus|hence|then|therefore|finally|entonces|luego|donc|ainsi|alors|somit|daher|então|portanto|logo"
    r"|quindi|dunque",
    r"значит|итак|así|vậy|jadi|因此|所以|따라서|よって|∴",
    after=r"[,:，、 ] ?",
)
EMPTY_WORDS = _any(
    r"correct|right|above|below|shown|found|given|boxed|clear|simple|obvious|verified|as follows|in the box",
    r"there|here|this|that",
    before=r"\A",
    after=r"\b[^\d$\\]*$",
)
# Not the colon of a ratio, a set or an option.
_COLON = r"(?<![<>!=\d])(?<!\d )(?<!\{[A-Za-z])(?<!\{[A-Za-z] )(?<!\{[A-Z]\})(?<!\{[A-Z]\} )(?<!\b[A-Z]):(?=\s)"
VERB = _any(r"\b(?:is|are|be|equals?|it['’]s|that['’]s|gives?|leaves?|makes?|has|have|means)(?![\w'’]):?", _COLON)
PREDICATE = _any(
    r"\b(?:is|are|not|it['’]s|equals?|the|we|that|so|be|was|were|find|get|gets|has|have|had|costs?|earn(?:s|ed)?"
    r"|needs?)\b",
    r"\b(?:makes?|made|pays?|paid|spends?|spent|gives?|leaves?|therefore|thus|hence|there|he|she|they|it|you)\b",
    _COLON,
)
SENTENCE_END = re.compile(
    r"(?:(?<![A-Z\d])(?<!Mr)(?<!Ms)(?<!Mrs)(?<!Dr)(?<!St)(?<!vs)(?<!i\.e)(?<!e\.g)|(?<=\d))"
    r"[.!?](?= [A-Z(¿¡«\u0400-\uffff])|[。！？।](?=.)"
)
