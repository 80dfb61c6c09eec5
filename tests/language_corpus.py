"""Texts of products in several languages, right ones and wrong ones, made by chance from a seed.

Each has what such texts have: brands, sizes, units, numbers, printed words in quotes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

SENTENCES = {
    "ru": (
        "Белая керамическая кружка {brand} объёмом {n} мл стоит на деревянном столе.",
        "На корпусе крупная надпись {printed}, рядом небольшой логотип.",
        "Материал верха — натуральная кожа, подошва из термоэластопласта (ТЭП).",
        "Размер: {n}x{n} мм, вес {n},5 кг, питание 220 В / 50 Гц.",
        "Смартфон {brand} с экраном OLED {n}\" и поддержкой Wi-Fi 6, NFC и USB Type-C.",
        "Куртка на молнии, с капюшоном и двумя боковыми карманами; цвет тёмно-синий.",
        "Подойдёт для стирки в машине при 30 °C, не отбеливать.",
        "В комплекте: зарядное устройство, кабель USB-C, чехол и инструкция.",
        "На этикетке указано: {printed}, состав 80 % хлопок, 20 % полиэстер.",
        "Слева от чайника лежат три красных яблока, справа стоит стакан с водой.",
        "Наушники {brand} держат заряд до {n} часов и складываются в футляр.",
        "Срок годности — 12 месяцев, хранить при температуре от +5 до +25 °C.",
        "Ноутбук {brand}, 16 ГБ ОЗУ, SSD 512 GB, видеокарта GeForce RTX 4060.",
        "Фактура ткани мягкая, покрой slim fit, манжеты на резинке.",
        "Дно не скользит, ручка удобно лежит в руке, крышка закрывается плотно.",
        "Подробности на сайте www.{lower}.ru или по адресу info@{lower}.ru.",
        "Рисунок на ткани напоминает букву Ω, а фон светло-бежевый.",
        "Набор из {n} предметов: тарелки, салатники и блюдо для подачи.",
        "Артикул {brand}-{n}/A, штрих-код 4601234567890.",
        "Зелёная бутылка с этикеткой {printed} наполовину полна.",
        "На фото двое детей строят замок из песка, позади видно море и парус.",
        "Борщ с говядиной и сметаной, {n} г; подаётся с чесночными пампушками.",
        "Закажите сегодня — доставим завтра, бесплатно от {n} рублей!",
        "График показывает рост выручки с {n} до {n}0 млн руб. за I–IV кварталы.",
        "Сидящий на подоконнике рыжий кот смотрит в окно, за которым идёт снег.",
        "Процессор Intel Core i7-13700K, 3,4 ГГц, 16 ядер, сокет LGA 1700.",
        "Крем для рук с маслом ши, витамины A и E, без парабенов, туба {n} мл.",
        "Съезд хозяйственников объявил перерыв; подъёмник у входа не работает.",
    ),
    "en": (
        "A white ceramic mug by {brand} holding {n} ml stands on a wooden table.",
        "The front of the box reads {printed} in large letters next to a small logo.",
        "The upper is made of genuine leather, the sole of durable rubber (TPR).",
        "Size: {n} x {n} mm, weight {n}.5 kg, powered by 220 V / 50 Hz.",
        "The {brand} smartphone has a {n}\" OLED screen, Wi-Fi 6, NFC and USB Type-C.",
        "A zipped jacket with a hood and two side pockets, in dark blue.",
        "Machine wash at 30 °C, do not bleach, iron on low heat.",
        "In the box: a charger, a USB-C cable, a case and a short manual.",
        "The label says {printed}, 80% cotton and 20% polyester.",
        "Three red apples lie to the left of the kettle, a glass of water to the right.",
        "The {brand} headphones last up to {n} hours and fold into their case.",
        "Best before twelve months, keep between +5 and +25 °C.",
        "{brand} laptop, 16 GB of RAM, 512 GB SSD, GeForce RTX 4060 graphics.",
        "The fabric is soft, the cut is slim, and the cuffs are elastic.",
        "The base does not slip, the handle sits well in the hand, the lid closes tightly.",
        "See www.{lower}.com or write to info@{lower}.com for details.",
        "The pattern on the fabric looks like the letter Ω on a light beige ground.",
        "A set of {n} pieces: plates, salad bowls and a serving dish.",
        "Item {brand}-{n}/A, barcode 4601234567890.",
        "A green bottle with the label {printed} is half full.",
        "In the photo two children build a sandcastle with the sea and a sail behind them.",
        "Borscht with beef and sour cream, {n} g, served with garlic buns.",
        "Order today and we deliver tomorrow, free of charge from ${n}!",
        "The chart shows revenue growing from {n} to {n}0 million over four quarters.",
        "A ginger cat on the windowsill watches the snow fall outside.",
        "Intel Core i7-13700K processor, 3.4 GHz, 16 cores, LGA 1700 socket.",
        "Hand cream with shea butter, vitamins A and E, paraben free, {n} ml tube.",
        "The croissants, the crème brûlée and a café au lait come to {n} euros.",
    ),
    "zh": (
        "这款{brand}陶瓷杯容量为{n}毫升，放在木桌上。",
        "包装正面印有{printed}字样，旁边是一个小标志。",
        "鞋面采用真皮材质，鞋底为耐磨橡胶（TPR）。",
        "尺寸：{n}×{n} mm，重量{n}.5 kg，电源220 V / 50 Hz。",
        "{brand}手机配备{n}英寸OLED屏幕，支持Wi-Fi 6、NFC和USB Type-C接口。",
        "拉链外套带有帽子和两个侧袋，颜色为深蓝色。",
        "可机洗，水温不超过30 ℃，不可漂白。",
        "包装内含：充电器、USB-C数据线、保护套和说明书。",
        "标签上写着{printed}，成分为80%棉和20%聚酯纤维。",
        "水壶左边有三个红苹果，右边是一杯水。",
        "{brand}耳机续航可达{n}小时，可折叠收纳。",
        "保质期12个月，请存放在5至25℃的环境中。",
        "{brand}笔记本电脑，16 GB内存，512 GB固态硬盘，GeForce RTX 4060显卡。",
        "面料柔软，采用slim fit剪裁，袖口有松紧带。",
        "底部防滑，手柄握感舒适，盖子密封良好。",
        "详情请访问www.{lower}.cn或发邮件至info@{lower}.cn。",
        "布料上的图案像字母Ω，底色为浅米色。",
        "一套{n}件：盘子、沙拉碗和一个上菜盘。",
        "货号{brand}-{n}/A，条形码4601234567890。",
        "一个贴着{printed}标签的绿色瓶子还剩一半。",
        "照片中两个孩子在堆沙堡，身后是大海和一片帆。",
        "牛肉罗宋汤配酸奶油，{n}克，附蒜香小面包。",
        "今日下单，明日送达，满{n}元包邮！",
        "图表显示四个季度的收入从{n}万元增长到{n}0万元。",
        "窗台上的橘猫正看着窗外飘落的雪花。",
        "Intel Core i7-13700K处理器，主频3.4 GHz，16核，LGA 1700插槽。",
        "护手霜含乳木果油和维生素A、E，不含防腐剂，每支{n} ml。",
        "这件T恤为oversize版型，适合身高165至175 cm的人穿着。",
    ),
    "uk": (
        "Біла керамічна чашка {brand} об'ємом {n} мл стоїть на дерев'яному столі.",
        "На корпусі великий напис {printed}, поруч невеликий логотип.",
        "Куртка на блискавці, з каптуром і двома бічними кишенями, колір темно-синій.",
        "Розмір: {n}x{n} мм, вага {n},5 кг, живлення 220 В.",
        "Ліворуч від чайника лежать три червоні яблука, праворуч стоїть склянка з водою.",
        "У комплекті: зарядний пристрій, кабель USB-C, чохол та інструкція.",
        "Зелена пляшка з етикеткою {printed} наполовину повна.",
        "Тканина м'яка на дотик, манжети на гумці, крій вільний.",
    ),
    "kk": (
        "Сыйымдылығы {n} мл {brand} ақ керамикалық кесесі ағаш үстелдің үстінде тұр.",
        "Қораптың бетінде {printed} деген үлкен жазу және шағын логотип бар.",
        "Капюшоны мен екі бүйір қалтасы бар көк түсті күртеше.",
        "Өлшемі: {n}x{n} мм, салмағы {n},5 кг, қуаты 220 В.",
        "Шәйнектің сол жағында үш қызыл алма, оң жағында бір стақан су тұр.",
        "Жиынтықта: зарядтау құрылғысы, USB-C кабелі, қап және нұсқаулық.",
        "Жасыл бөтелкенің жартысы толы, жапсырмасында {printed} деп жазылған.",
        "Матасы жұмсақ, жеңі созылмалы, пішімі еркін.",
    ),
    "de": (
        "Eine weiße Keramiktasse von {brand} mit {n} ml steht auf einem Holztisch.",
        "Auf der Vorderseite steht {printed} in großen Buchstaben neben einem kleinen Logo.",
        "Eine dunkelblaue Jacke mit Reißverschluss, Kapuze und zwei Seitentaschen.",
        "Größe: {n} x {n} mm, Gewicht {n},5 kg, Betrieb mit 220 V.",
        "Links vom Wasserkocher liegen drei rote Äpfel, rechts steht ein Glas Wasser.",
        "Im Lieferumfang: ein Ladegerät, ein USB-C-Kabel, eine Hülle und eine Anleitung.",
        "Eine grüne Flasche mit dem Etikett {printed} ist halb voll.",
        "Der Stoff ist weich, die Bündchen sind elastisch, der Schnitt ist locker.",
    ),
    "es": (
        "Una taza blanca de cerámica de {brand} de {n} ml está sobre una mesa de madera.",
        "En la parte frontal se lee {printed} en letras grandes junto a un pequeño logotipo.",
        "Una chaqueta azul oscuro con cremallera, capucha y dos bolsillos laterales.",
        "Tamaño: {n} x {n} mm, peso {n},5 kg, alimentación de 220 V.",
        "A la izquierda de la tetera hay tres manzanas rojas, a la derecha un vaso de agua.",
        "Incluye: un cargador, un cable USB-C, una funda y un manual de uso.",
        "Una botella verde con la etiqueta {printed} está medio llena.",
        "La tela es suave, los puños son elásticos y el corte es holgado.",
    ),
    "fr": (
        "Une tasse blanche en céramique {brand} de {n} ml est posée sur une table en bois.",
        "Sur le devant on lit {printed} en grandes lettres à côté d'un petit logo.",
        "Une veste bleu foncé à fermeture éclair, avec une capuche et deux poches.",
        "Dimensions : {n} x {n} mm, poids {n},5 kg, alimentation 220 V.",
        "À gauche de la bouilloire se trouvent trois pommes rouges, à droite un verre d'eau.",
        "Contenu : un chargeur, un câble USB-C, une housse et un mode d'emploi.",
        "Une bouteille verte portant l'étiquette {printed} est à moitié pleine.",
        "Le tissu est doux, les poignets sont élastiques et la coupe est ample.",
    ),
    "it": (
        "Una tazza bianca in ceramica {brand} da {n} ml si trova su un tavolo di legno.",
        "Sulla parte anteriore si legge {printed} a grandi lettere accanto a un piccolo logo.",
        "Una giacca blu scuro con cerniera, cappuccio e due tasche laterali.",
        "A sinistra del bollitore ci sono tre mele rosse, a destra un bicchiere d'acqua.",
        "Una bottiglia verde con l'etichetta {printed} è piena a metà.",
        "Il tessuto è morbido, i polsini sono elastici e il taglio è ampio.",
    ),
    "pl": (
        "Biały kubek ceramiczny {brand} o pojemności {n} ml stoi na drewnianym stole.",
        "Z przodu widnieje duży napis {printed} obok niewielkiego logo.",
        "Granatowa kurtka z zamkiem błyskawicznym, kapturem i dwiema kieszeniami.",
        "Po lewej stronie czajnika leżą trzy czerwone jabłka, po prawej stoi szklanka wody.",
        "Zielona butelka z etykietą {printed} jest w połowie pełna.",
        "Tkanina jest miękka, mankiety są elastyczne, a krój jest luźny.",
    ),
    "tr": (
        "{brand} marka {n} ml beyaz seramik kupa ahşap bir masanın üzerinde duruyor.",
        "Ön yüzünde küçük bir logonun yanında büyük harflerle {printed} yazıyor.",
        "Fermuarlı, kapüşonlu ve iki yan cepli lacivert bir ceket.",
        "Su ısıtıcısının solunda üç kırmızı elma, sağında bir bardak su var.",
        "Üzerinde {printed} etiketi bulunan yeşil şişe yarıya kadar dolu.",
        "Kumaşı yumuşak, manşetleri lastikli ve kesimi bol.",
    ),
    "ja": (
        "容量{n}mlの{brand}の白い陶器のマグカップが木のテーブルの上に置かれています。",
        "箱の正面には{printed}と大きく書かれ、隣に小さなロゴがあります。",
        "フードとサイドポケットが二つ付いた紺色のジャケットです。",
        "やかんの左には赤いりんごが三つ、右には水の入ったグラスがあります。",
        "生地は柔らかく、袖口にはゴムが入っています。",
    ),
    "ko": (
        "용량 {n}ml의 {brand} 흰색 도자기 머그잔이 나무 탁자 위에 놓여 있습니다.",
        "상자 앞면에는 {printed}라고 크게 쓰여 있고 옆에 작은 로고가 있습니다.",
        "모자와 옆 주머니 두 개가 달린 남색 재킷입니다.",
        "주전자 왼쪽에는 빨간 사과 세 개가, 오른쪽에는 물 한 잔이 있습니다.",
        "원단은 부드럽고 소매에는 고무줄이 들어 있습니다.",
    ),
}  # fmt: skip
BRANDS = (
    "Samsung", "Bosch", "LEGO", "iPhone 15 Pro", "Xiaomi Redmi Note 13", "IKEA", "Philips",
    "Tefal", "HP LaserJet M110w", "Nike Air Max", "adidas", "De'Longhi", "Villeroy & Boch",
    "Makita DHP482", "Jack Daniel's", "Coca-Cola Zero", "Sony WH-1000XM5", "L'Oréal Paris",
)  # fmt: skip
PRINTED = (
    "«СКИДКА»", "«OPEN 24 HOURS»", "“Молоко 3,2 %”", "“欢迎光临”", "\"NO SMOKING\"", "「限定」",
    "«Made with love in Italy»", "“SALE”", "„Guten Morgen“", "\"Осторожно, стекло\"", "“净含量500克”",
    "«Best coffee in our small town»", "'FRAGILE'", "《红楼梦》", "`ERR_42`", "‘Bonne journée’",
)  # fmt: skip
# of each script, what models let slip into a text of another
RUNS = {
    "CJK": ("白色", "杯子", "的时候", "红", "产品描述", "非常好"),
    "KANA": ("です", "カップ", "ください", "ありがとう"),
    "HANGUL": ("흰색", "컵입니다", "제품"),
    "CYRILLIC": ("кружка", "белая", "это", "товар", "на"),
    "ARABIC": ("كوب", "أبيض", "المنتج"),
    "DEVANAGARI": ("कप", "सफेद", "उत्पाद"),
    "GREEK": ("λευκό", "κούπα", "και"),
    "HEBREW": ("כוס", "לבנה"),
    "THAI": ("สีขาว", "แก้ว"),
}
SPACED = {"zh": "", "ja": ""}  # what stands between sentences; a space, elsewhere


def texts(language: str, count: int, seed: int = 0) -> Iterator[str]:
    """Right texts of two to five sentences."""
    rng = random.Random(f"{language}/{seed}")
    for _ in range(count):
        yield SPACED.get(language, " ").join(sentences(rng, language))


def sentences(rng: random.Random, language: str) -> list[str]:
    pool = SENTENCES[language]
    chosen = rng.sample(pool, rng.randint(2, 5))
    return [filled(rng, sentence) for sentence in chosen]


def filled(rng: random.Random, sentence: str) -> str:
    brand = rng.choice(BRANDS)
    return sentence.format(
        brand=brand,
        printed=rng.choice(PRINTED),
        lower=brand.split()[0].lower().replace("'", ""),
        n=rng.randint(2, 900),
    )


def injected(language: str, own: tuple[str, ...], count: int) -> Iterator[str]:
    """Right texts with a run of a script that is not one of `own` between, or within, two words."""
    rng = random.Random(f"injected {language}")
    foreign = [run for name, runs in RUNS.items() if name not in own for run in runs]
    for _ in range(count):
        said = [filled(rng, rng.choice(SENTENCES[language])) for _ in range(rng.randint(2, 4))]
        plain = [filled(rng, s) for s in SENTENCES[language] if "{printed}" not in s]
        host = rng.choice(plain)
        at = rng.choice([i for i, c in enumerate(host) if i and c.isalpha()])
        beside = rng.random() < 0.7 and " " in host
        if beside:
            at = host.index(" ", min(at, host.rindex(" ")))
        run = rng.choice(foreign)
        said.insert(rng.randint(0, 2), host[:at] + (f" {run}" if beside else run) + host[at:])
        yield SPACED.get(language, " ").join(said)


def halves(first: str, second: str, count: int) -> Iterator[str]:
    """Texts that begin in one language and go on in another."""
    rng = random.Random(f"{first} and {second}")
    for _ in range(count):
        both = [sentences(rng, language)[:3] for language in (first, second)]
        yield " ".join(said for part in both for said in part)
