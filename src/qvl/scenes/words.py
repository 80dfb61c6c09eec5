"""What is printed in scenes: closed lists of words in Russian, English and Chinese, and made-up data.

Names are of nobody: surnames say "sample", telephone numbers have the area code 000 or the 555 of
films, addresses on the net end in .example (RFC 2606), passports are of Utopia (UTO, as in ICAO 9303),
taxpayers' numbers begin with 00, a region that there is not, EAN codes with 2, a shop's own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Language = Literal["ru", "en", "zh"]
LANGUAGES: tuple[Language, ...] = ("ru", "en", "zh")
Words = tuple[str, str, str]  # in the order of LANGUAGES


def said(words: Words, language: Language) -> str:
    return words[LANGUAGES.index(language)]


SIGNS: tuple[Words, ...] = (
    ("ХЛЕБ", "BREAD", "面包"), ("АПТЕКА", "PHARMACY", "药店"), ("ВЫХОД", "EXIT", "出口"),
    ("ВХОД", "ENTRANCE", "入口"), ("МОЛОКО", "MILK", "牛奶"), ("СКИДКИ", "SALE", "打折"),
    ("КАФЕ", "CAFE", "咖啡厅"), ("ПОЧТА", "POST", "邮局"), ("ШКОЛА", "SCHOOL", "学校"),
    ("МАГАЗИН", "SHOP", "商店"), ("ОПТИКА", "OPTICS", "眼镜店"), ("ЦВЕТЫ", "FLOWERS", "鲜花"),
    ("КНИГИ", "BOOKS", "书店"), ("ОБУВЬ", "SHOES", "鞋店"), ("РЫБА", "FISH", "鱼"),
    ("ФРУКТЫ", "FRUIT", "水果"), ("ОВОЩИ", "VEGETABLES", "蔬菜"), ("СЫРЫ", "CHEESE", "奶酪"),
    ("БИЛЕТЫ", "TICKETS", "售票处"), ("ПАРКОВКА", "PARKING", "停车场"), ("БАНК", "BANK", "银行"),
    ("ЛИФТ", "LIFT", "电梯"), ("МЕБЕЛЬ", "FURNITURE", "家具"), ("КЛЮЧИ", "KEYS", "钥匙"),
    ("ПЕКАРНЯ", "BAKERY", "面包房"), ("ЧАЙ", "TEA", "茶"), ("ТУАЛЕТ", "TOILET", "洗手间"),
    ("ПИЦЦА", "PIZZA", "比萨"), ("МУЗЕЙ", "MUSEUM", "博物馆"), ("ЦИРК", "CIRCUS", "马戏团"),
    ("ИГРУШКИ", "TOYS", "玩具"), ("КАССА", "CASH DESK", "收银台"), ("ГАРДЕРОБ", "CLOAKROOM", "衣帽间"),
    ("МЯСО", "MEAT", "肉"), ("КОФЕ", "COFFEE", "咖啡"), ("ОСТОРОЖНО", "CAUTION", "小心"),
    ("СТОП", "STOP", "停"), ("ТАКСИ", "TAXI", "出租车"), ("ГОСТИНИЦА", "HOTEL", "酒店"),
    ("РЕМОНТ", "REPAIR", "维修"), ("НОВИНКА", "NEW", "新品"), ("СУП", "SOUP", "汤"),
    ("ЛЁД", "ICE", "冰"), ("МЁД", "HONEY", "蜂蜜"), ("СОК", "JUICE", "果汁"), ("САД", "GARDEN", "花园"),
    ("ПАРК", "PARK", "公园"), ("ТЕАТР", "THEATRE", "剧院"), ("КИНО", "CINEMA", "电影院"),
    ("ВОКЗАЛ", "STATION", "车站"), ("МЕТРО", "METRO", "地铁"), ("ПЛЯЖ", "BEACH", "海滩"),
    ("БИБЛИОТЕКА", "LIBRARY", "图书馆"), ("СПОРТ", "SPORT", "运动"), ("БАССЕЙН", "POOL", "游泳池"),
)  # fmt: skip
OPEN_SIGNS: tuple[Words, ...] = (
    ("ОТКРЫТО", "OPEN", "营业中"),
    ("МЫ ОТКРЫТЫ", "WE ARE OPEN", "正在营业"),
)
CLOSED_SIGNS: tuple[Words, ...] = (
    ("ЗАКРЫТО", "CLOSED", "休息中"),
    ("ИЗВИНИТЕ, ЗАКРЫТО", "SORRY, WE ARE CLOSED", "暂停营业"),
)


@dataclass(frozen=True, slots=True)
class Product:
    """A name in three languages, and from what to what it costs (a thing of a shop in Russia)."""

    names: Words
    low: int
    high: int


PRODUCTS: tuple[Product, ...] = tuple(
    Product((ru, en, zh), low, high)
    for ru, en, zh, low, high in (
        ("Хлеб", "Bread", "面包", 30, 90), ("Молоко", "Milk", "牛奶", 60, 120),
        ("Сыр", "Cheese", "奶酪", 150, 600), ("Яблоки", "Apples", "苹果", 80, 200),
        ("Бананы", "Bananas", "香蕉", 90, 180), ("Чай", "Tea", "茶叶", 90, 350),
        ("Кофе", "Coffee", "咖啡", 200, 900), ("Сахар", "Sugar", "白糖", 50, 110),
        ("Соль", "Salt", "食盐", 15, 45), ("Рис", "Rice", "大米", 80, 190),
        ("Гречка", "Buckwheat", "荞麦", 60, 150), ("Макароны", "Pasta", "面条", 50, 160),
        ("Масло", "Butter", "黄油", 120, 300), ("Яйца", "Eggs", "鸡蛋", 90, 170),
        ("Сок", "Juice", "果汁", 80, 210), ("Вода", "Water", "矿泉水", 25, 70),
        ("Печенье", "Biscuits", "饼干", 40, 190), ("Шоколад", "Chocolate", "巧克力", 70, 220),
        ("Мыло", "Soap", "香皂", 35, 140), ("Шампунь", "Shampoo", "洗发水", 150, 480),
        ("Салфетки", "Napkins", "纸巾", 30, 120), ("Пакет", "Bag", "购物袋", 5, 15),
        ("Тетрадь", "Notebook", "笔记本", 20, 160), ("Ручка", "Pen", "钢笔", 15, 120),
        ("Карандаш", "Pencil", "铅笔", 10, 60), ("Лампа", "Lamp", "台灯", 300, 1900),
        ("Чашка", "Cup", "杯子", 120, 700), ("Тарелка", "Plate", "盘子", 110, 650),
        ("Зонт", "Umbrella", "雨伞", 400, 2500), ("Носки", "Socks", "袜子", 60, 250),
        ("Шапка", "Hat", "帽子", 300, 1500), ("Мяч", "Ball", "皮球", 250, 1400),
        ("Мёд", "Honey", "蜂蜜", 250, 800), ("Рыба", "Fish", "鱼", 200, 900),
        ("Огурцы", "Cucumbers", "黄瓜", 90, 260), ("Томаты", "Tomatoes", "番茄", 110, 320),
        ("Картофель", "Potatoes", "土豆", 30, 80), ("Лук", "Onions", "洋葱", 30, 70),
        ("Морковь", "Carrots", "胡萝卜", 35, 90), ("Йогурт", "Yoghurt", "酸奶", 35, 130),
    )
)  # fmt: skip
SHOPS: tuple[Words, ...] = (
    ("Синий чайник", "Blue Kettle", "蓝壶商店"), ("Северный ветер", "North Wind", "北风超市"),
    ("Три кота", "Three Cats", "三猫便利店"), ("Зелёный лист", "Green Leaf", "绿叶超市"),
    ("Добрый день", "Good Day", "好日子商店"), ("Белый парус", "White Sail", "白帆百货"),
    ("Красная башня", "Red Tower", "红塔百货"), ("Лунный свет", "Moonlight", "月光书店"),
    ("Золотая рыбка", "Goldfish", "金鱼商行"), ("Тихий двор", "Quiet Yard", "静园茶庄"),
    ("Пять минут", "Five Minutes", "五分钟便利店"), ("Старая мельница", "Old Mill", "老磨坊面包店"),
)  # fmt: skip
STREETS: tuple[Words, ...] = (
    ("Садовая ул.", "Garden St", "花园路"), ("Лесная ул.", "Forest St", "森林路"),
    ("Речная ул.", "River St", "河边路"), ("Полевая ул.", "Field St", "田野路"),
    ("Светлая ул.", "Bright St", "光明路"), ("Новая ул.", "New St", "新街"),
    ("Озёрная ул.", "Lake St", "湖滨路"), ("Школьная ул.", "School St", "学校路"),
    ("Мостовая ул.", "Bridge St", "桥头路"), ("Вишнёвая ул.", "Cherry St", "樱桃路"),
)  # fmt: skip
GIVEN_NAMES: tuple[Words, ...] = (
    ("Анна", "Anna", "小红"), ("Мария", "Maria", "小兰"), ("Ольга", "Olga", "小雪"),
    ("Вера", "Vera", "小梅"), ("Нина", "Nina", "小云"), ("Лиза", "Lisa", "小月"),
)  # fmt: skip
SURNAMES: tuple[Words, ...] = (
    ("Примерова", "Sample", "例"), ("Образцова", "Specimen", "样"), ("Тестова", "Testing", "试"),
    ("Шаблонова", "Template", "模"), ("Макетова", "Mockup", "范"),
)  # fmt: skip
POSITIONS: tuple[Words, ...] = (
    ("Директор", "Director", "经理"), ("Бухгалтер", "Accountant", "会计"),
    ("Инженер", "Engineer", "工程师"), ("Дизайнер", "Designer", "设计师"),
    ("Продавец", "Sales assistant", "销售员"), ("Менеджер", "Manager", "主管"),
)  # fmt: skip
COUNTRIES: tuple[Words, ...] = (
    ("Россия", "Russia", "俄罗斯"), ("Китай", "China", "中国"), ("Италия", "Italy", "意大利"),
    ("Франция", "France", "法国"), ("Индия", "India", "印度"), ("Испания", "Spain", "西班牙"),
)  # fmt: skip
COLOUR_WORDS: tuple[Words, ...] = (
    ("красный", "red", "红色"), ("синий", "blue", "蓝色"), ("зелёный", "green", "绿色"),
    ("белый", "white", "白色"), ("чёрный", "black", "黑色"), ("жёлтый", "yellow", "黄色"),
)  # fmt: skip
# whatever the thing is: it must be read, and cannot be guessed
COMPOSITIONS: tuple[Words, ...] = (
    ("хлопок 100%", "cotton 100%", "棉100%"), ("шерсть 80%", "wool 80%", "羊毛80%"),
    ("сахар, какао", "sugar, cocoa", "白糖、可可"), ("мука, вода, соль", "flour, water, salt", "面粉、水、盐"),
    ("молоко, закваска", "milk, culture", "牛奶、菌种"), ("сталь", "steel", "钢"),
)  # fmt: skip
MAILBOXES = ("info", "office", "hello", "sales", "mail", "post")
BRANDS = ("Lumo", "Nordik", "Vesta", "Orbis", "Kivi", "Solara", "Tavo", "Мирта", "Заря", "Луч")
MONTHS: tuple[Words, ...] = (
    ("янв", "Jan", "1月"), ("фев", "Feb", "2月"), ("мар", "Mar", "3月"), ("апр", "Apr", "4月"),
    ("май", "May", "5月"), ("июн", "Jun", "6月"), ("июл", "Jul", "7月"), ("авг", "Aug", "8月"),
    ("сен", "Sep", "9月"), ("окт", "Oct", "10月"), ("ноя", "Nov", "11月"), ("дек", "Dec", "12月"),
)  # fmt: skip
WEEKDAYS: tuple[Words, ...] = (
    ("пн", "Mon", "周一"), ("вт", "Tue", "周二"), ("ср", "Wed", "周三"), ("чт", "Thu", "周四"),
    ("пт", "Fri", "周五"), ("сб", "Sat", "周六"), ("вс", "Sun", "周日"),
)  # fmt: skip
DIGITS = "0123456789"
# O, I and З, which look like digits, are not drawn at random
LATIN, CYRILLIC = "ABCDEFGHJKLMNPQRSTUVWXYZ", "БГДЖИЛПФЦЧШЩЫЭЮЯ"
LATIN_SMALL = "abdefghijnqrty"  # whose capitals are other shapes
OWN_LATIN, SHARED_CYRILLIC = (
    "DFGJLNQRSUVWZ",
    "АВЕКМНРСТУХ",
)  # one letter of its own tells the alphabet


def random_letters(rng: random.Random, length: int) -> str:
    """Capitals of one alphabet, which it is possible to tell."""
    own, others = rng.choice(((OWN_LATIN, LATIN), (CYRILLIC, CYRILLIC + SHARED_CYRILLIC)))
    letters = [rng.choice(own), *rng.choices(others, k=length - 1)]
    rng.shuffle(letters)
    return "".join(letters)


def random_string(rng: random.Random, least: int, most: int) -> str:
    """Digits, letters of one alphabet, or a code of both: "AB-4071"."""
    length = rng.randint(least, most)
    kind = rng.random()
    if kind < 0.3:
        return "".join(rng.choices(DIGITS, k=length))
    if kind < 0.8:
        return random_letters(rng, length)
    letters = random_letters(rng, max(1, length // 2))
    return f"{letters}-{''.join(rng.choices(DIGITS, k=max(2, length - len(letters))))}"


def random_code(rng: random.Random) -> str:
    """A number of a paper: "4071", "AB-4071", "2026/117"."""
    digits = "".join(rng.choices(DIGITS[1:], k=rng.randint(3, 6)))
    prefix = "".join(rng.choices("ABCDEFGHKLMNPRSTUVWX", k=2))
    return rng.choice((digits, f"{prefix}-{digits}", f"{rng.randint(2021, 2028)}/{digits}"))


def product_price(rng: random.Random, product: Product, language: Language) -> Decimal:
    """In roubles, else a tenth of that; whole, or ending as prices do."""
    price = rng.randint(product.low, product.high)
    if language != "ru":
        price = max(1, price // 10)
    return Decimal(price) - rng.choice(
        (Decimal("0.00"), Decimal("0.01"), Decimal("0.10"), Decimal("0.50"))
    )


def amount(value: Decimal, language: Language) -> str:
    """As it is printed: "1 299,90", "1,299.90", "1299.90"."""
    match language:
        case "ru":
            return f"{value:,}".replace(",", " ").replace(".", ",")
        case "en":
            return f"{value:,}"
    return str(value)


def money(value: Decimal, language: Language, rng: random.Random) -> str:
    """With its currency."""
    text = amount(value, language)
    match language:
        case "ru":
            return f"{text} {rng.choice(('₽', 'руб.'))}"
        case "en":
            return rng.choice((f"${text}", f"€{text}"))
    return rng.choice((f"¥{text}", f"{text}元"))


def day(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(2021, 2028), rng.randint(1, 12), rng.randint(1, 28)


def from_iso(text: str) -> tuple[int, int, int]:
    year, month, of_month = map(int, text.split("-"))
    return year, month, of_month


def iso(date: tuple[int, int, int]) -> str:
    return f"{date[0]:04}-{date[1]:02}-{date[2]:02}"


def printed_day(date: tuple[int, int, int], language: Language) -> str:
    """30.11.2026, 30 Nov 2026, 2026年11月30日."""
    year, month, of_month = date
    match language:
        case "ru":
            return f"{of_month:02}.{month:02}.{year}"
        case "en":
            return f"{of_month} {MONTHS[month - 1][1]} {year}"
    return f"{year}年{month:02}月{of_month:02}日"


def phone(rng: random.Random, language: Language) -> str:
    a, b, c = rng.randint(100, 999), rng.randint(10, 99), rng.randint(10, 99)
    match language:
        case "ru":
            return rng.choice((f"+7 (000) {a}-{b}-{c}", f"8 000 {a}-{b}-{c}"))
        case "en":
            return f"+1 {rng.choice(('(555)', '555'))} 555-01{b}"
    return f"000-{a}{b}{c}"


def address(rng: random.Random, language: Language) -> str:
    street, house = said(rng.choice(STREETS), language), rng.randint(1, 120)
    return {"ru": f"{street}, {house}", "en": f"{house} {street}", "zh": f"{street}{house}号"}[
        language
    ]


def person(rng: random.Random, language: Language) -> str:
    given, surname = said(rng.choice(GIVEN_NAMES), language), said(rng.choice(SURNAMES), language)
    return f"{surname}{given}" if language == "zh" else f"{given} {surname}"


def inn(rng: random.Random) -> str:
    """Ten digits, the last of which checks the others (`tasks.checks.is_inn`)."""
    digits = [0, 0, *(rng.randint(0, 9) for _ in range(7))]
    weights = (2, 4, 10, 3, 5, 9, 4, 6, 8)
    check = sum(w * d for w, d in zip(weights, digits, strict=True)) % 11 % 10
    return "".join(map(str, [*digits, check]))


def ean13(rng: random.Random) -> str:
    digits = [2, *(rng.randint(0, 9) for _ in range(11))]
    total = sum(digits[::2]) + 3 * sum(digits[1::2])
    return "".join(map(str, [*digits, -total % 10]))


def iban(rng: random.Random) -> str:
    """Of the country XX, which there is not; the check digits make the number 1 modulo 97."""
    account = "".join(str(rng.randint(0, 9)) for _ in range(14))
    check = 98 - int(f"{account}{int('X', 36)}{int('X', 36)}00") % 97
    return f"XX{check:02}{account}"


def checked_digit(text: str) -> str:
    """The check digit of a machine readable zone: weights 7, 3, 1, modulo 10 (ICAO 9303-3, 4.9)."""
    values = (0 if letter == "<" else int(letter, 36) for letter in text)
    return str(sum(value * (7, 3, 1)[at % 3] for at, value in enumerate(values)) % 10)
