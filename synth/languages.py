"""The vocabulary of the documents, one language after the other. Words that stand in one place are separated by `|`.

A language may have a script of its own: a key of fonts.SCRIPTS, for which not every machine has a font. The first
LATIN_LIKE languages need none. Add a language at the end, since types choose theirs by number.
"""
from dataclasses import dataclass

LABEL_KEYS = ("surname", "given", "name", "birth", "place", "number", "issued", "expires", "sex", "height", "address",
              "signature", "date", "time", "seat", "gate", "from", "to", "amount", "total", "weight", "lot", "remarks")
LATIN_LIKE = 6  # languages in Latin, Cyrillic or Greek letters: those for which matplotlib has fonts


@dataclass(frozen=True)
class Language:
    """name: in English; script: see fonts.SCRIPTS, or None; syllables: to form names from, with spaces between; labels: in
    the order of LABEL_KEYS; titles: by family; organizations: by kind, {} is a name; phrases: property, care, validity,
    thanks; space: what stands between words; wide: the mean width of a letter, in units of the size of the font."""
    name: str
    script: str | None
    syllables: str
    labels: str
    titles: dict
    organizations: dict
    phrases: str
    space: str = " "
    wide: float = .56


LATIN = "ve lo mar ti sa ren dal ko bri an el tor mi na sel ga ro hal ni vor es ta lin or pa de win"
CARDS = "debit|credit|business|platinum|prepaid|student"

LANGUAGES = (
    Language(
        name="English", script=None, syllables=LATIN,
        labels="Surname|Given names|Name|Date of birth|Place of birth|Document no.|Issued|Expires|Sex|Height|Address|"
               "Signature|Date|Time|Seat|Gate|From|To|Amount|TOTAL|Weight|Lot|Remarks",
        titles={"id_card": "Identity card|Residence permit|Driving licence|Student card|Health insurance card|Staff pass",
                "passport": "Passport|Travel document|Visa", "bank_card": CARDS,
                "form": "Application form|Registration|Tax declaration|Questionnaire|Medical record|Customs form",
                "receipt": "Receipt|Tax invoice|Sale", "ticket": "Admission|Boarding pass|Season ticket|Day return",
                "label": "Priority|Express parcel|Fragile|Organic|Sterile|Warranty",
                "invoice": "Invoice|Tax invoice|Credit note|Statement", "plate": "Republic|State|City|Taxi|Test|Export",
                "badge": "Hello my name is|Visitor|Staff|Guest|Speaker|Press",
                "price": "Sale|Offer|New price|Only|Today|Fresh", "package": "Tea|Biscuits|Soap|Rice|Coffee|Cereal|Toys",
                "cheque": "Cheque|Pay to", "letter": "Letter|Contract|Report|Minutes|Memo|Notice",
                "menu": "Menu|Starters|Mains|Desserts|Drinks", "timetable": "Timetable|Departures|Schedule|Opening hours",
                "screen": "Home|Search|Messages|Settings|Orders|Profile|News|Help",
                "certificate": "Certificate|Diploma|Award|Licence"},
        organizations={"state": "Republic of {}|Kingdom of {}|{} Federation|State of {}|City of {}",
                       "bank": "{} Bank|Bank of {}|{} Savings|{}pay",
                       "shop": "{} Market|{} & Sons|Café {}|{} Motors|{} Lines",
                       "office": "University of {}|{} Institute|Ministry of {}|{} Health Board|Academy of {}"},
        phrases="This document remains the property of the issuer.|Keep it in a dry place and return it when asked.|"
                "Not valid without signature.|Thank you and see you soon."),
    Language(
        name="French", script=None, syllables=LATIN,
        labels="Nom|Prénoms|Titulaire|Né(e) le|Lieu|Numéro|Délivré le|Expire le|Sexe|Taille|Adresse|Signature|Date|Heure|"
               "Place|Porte|De|À|Montant|TOTAL|Poids|Lot|Remarques",
        titles={"id_card": "Carte d'identité|Titre de séjour|Permis de conduire|Carte d'étudiant|Carte de santé|Badge",
                "passport": "Passeport|Titre de voyage|Visa", "bank_card": CARDS,
                "form": "Demande|Inscription|Déclaration|Questionnaire|Dossier médical|Douane",
                "receipt": "Reçu|Ticket|Vente", "ticket": "Entrée|Carte d'embarquement|Abonnement|Aller-retour",
                "label": "Prioritaire|Colis express|Fragile|Biologique|Stérile|Garantie", "invoice": "Facture|Avoir|Relevé",
                "plate": "Région|Taxi", "badge": "Bonjour je suis|Visiteur|Invité|Presse",
                "price": "Promo|Offre|Prix bas|Frais", "package": "Thé|Biscuits|Savon|Café|Jouets",
                "cheque": "Chèque|Payez à", "letter": "Lettre|Contrat|Rapport|Note",
                "menu": "Carte|Entrées|Plats|Desserts|Boissons", "timetable": "Horaires|Départs",
                "screen": "Accueil|Recherche|Messages|Réglages|Profil", "certificate": "Certificat|Diplôme|Prix|Brevet"},
        organizations={"state": "République de {}|Royaume de {}|Canton de {}", "bank": "Banque {}|Crédit {}",
                       "shop": "Maison {}|Chez {}|Transports {}", "office": "Université de {}|Ministère de {}|Institut {}"},
        phrases="Ce document reste la propriété de l'émetteur.|À conserver au sec et à rendre sur demande.|"
                "Non valable sans signature.|Merci et à bientôt."),
    Language(
        name="German", script=None, syllables=LATIN,
        labels="Nachname|Vornamen|Inhaber|Geburtstag|Geburtsort|Nummer|Ausgestellt|Gültig bis|Geschlecht|Größe|Anschrift|"
               "Unterschrift|Datum|Uhrzeit|Platz|Tor|Von|Nach|Betrag|SUMME|Gewicht|Charge|Bemerkungen",
        titles={"id_card": "Personalausweis|Aufenthaltstitel|Führerschein|Studienausweis|Gesundheitskarte|Dienstausweis",
                "passport": "Reisepass|Reiseausweis|Visum", "bank_card": CARDS,
                "form": "Antrag|Anmeldung|Steuererklärung|Fragebogen|Krankenblatt|Zollerklärung",
                "receipt": "Quittung|Kassenbon|Beleg", "ticket": "Eintritt|Bordkarte|Zeitkarte|Fahrschein",
                "label": "Eilsendung|Paketschein|Zerbrechlich|Ökologisch|Steril|Garantie",
                "invoice": "Rechnung|Gutschrift|Lieferschein", "plate": "Land|Kreis|Probe",
                "badge": "Mein Name ist|Besucher|Gast|Personal", "price": "Aktion|Angebot|Nur|Neu|Frisch",
                "package": "Tee|Kekse|Seife|Kaffee|Spielzeug", "cheque": "Scheck|Zahlen Sie an",
                "letter": "Brief|Vertrag|Bericht|Protokoll", "menu": "Speisekarte|Vorspeisen|Hauptgerichte|Getränke",
                "timetable": "Fahrplan|Abfahrt", "screen": "Start|Suche|Nachrichten|Profil|Hilfe",
                "certificate": "Urkunde|Diplom|Zeugnis|Zertifikat"},
        organizations={"state": "Republik {}|Freistaat {}|Land {}", "bank": "{}bank|Sparkasse {}",
                       "shop": "{} GmbH|Gasthof {}|{} Bahn", "office": "Universität {}|Amt {}|Akademie {}"},
        phrases="Dieses Dokument bleibt Eigentum des Ausstellers.|Trocken lagern und auf Verlangen zurückgeben.|"
                "Ohne Unterschrift ungültig.|Vielen Dank, bis bald."),
    Language(
        name="Spanish", script=None, syllables=LATIN,
        labels="Apellidos|Nombre|Titular|Nacimiento|Lugar|Número|Expedido|Válido hasta|Sexo|Estatura|Domicilio|Firma|"
               "Fecha|Hora|Asiento|Puerta|Origen|Destino|Importe|TOTAL|Peso|Lote|Notas",
        titles={"id_card": "Documento de identidad|Permiso de residencia|Permiso de conducir|Carné|Tarjeta de salud|Pase",
                "passport": "Pasaporte|Título de viaje|Visado", "bank_card": CARDS,
                "form": "Solicitud|Inscripción|Declaración|Cuestionario|Historia clínica|Aduana",
                "receipt": "Recibo|Factura|Venta", "ticket": "Entrada|Embarque|Abono|Ida y vuelta",
                "label": "Prioridad|Paquete|Frágil|Ecológico|Estéril|Garantía", "invoice": "Factura|Abono|Albarán",
                "plate": "Región|Taxi", "badge": "Me llamo|Visitante|Invitado|Prensa",
                "price": "Oferta|Rebaja|Solo hoy|Fresco", "package": "Té|Galletas|Jabón|Arroz|Café",
                "cheque": "Cheque|Páguese a", "letter": "Carta|Contrato|Informe|Acta",
                "menu": "Menú|Entrantes|Platos|Postres", "timetable": "Horario|Salidas",
                "screen": "Inicio|Buscar|Mensajes|Ajustes|Perfil", "certificate": "Certificado|Diploma|Premio|Título"},
        organizations={"state": "República de {}|Reino de {}|Provincia de {}", "bank": "Banco {}|Caja {}",
                       "shop": "Casa {}|Hotel {}|Viajes {}", "office": "Universidad de {}|Ministerio de {}|Colegio {}"},
        phrases="Este documento es propiedad del emisor.|Consérvese en lugar seco y devuélvase si se pide.|"
                "No es válido sin firma.|Gracias y hasta pronto."),
    Language(
        name="Russian", script=None,
        syllables="ва ло мар ти са рен дал ко бри ан ел тор ми на сел га ро хал ни вор ес та лин ор па де вин",
        labels="Фамилия|Имя|Владелец|Дата рождения|Место|Номер|Выдан|Годен до|Пол|Рост|Адрес|Подпись|Дата|Время|Место|"
               "Выход|Откуда|Куда|Сумма|ИТОГО|Вес|Партия|Примечания",
        titles={"id_card": "Удостоверение|Вид на жительство|Водительские права|Студенческий билет|Полис|Пропуск",
                "passport": "Паспорт|Проездной документ|Виза", "bank_card": CARDS,
                "form": "Заявление|Регистрация|Декларация|Анкета|Медицинская карта|Таможня",
                "receipt": "Чек|Квитанция|Продажа", "ticket": "Билет|Посадочный талон|Абонемент|Проезд",
                "label": "Срочно|Посылка|Осторожно|Натурально|Стерильно|Гарантия", "invoice": "Счёт|Накладная|Акт",
                "plate": "Россия|Такси|Область", "badge": "Меня зовут|Посетитель|Гость|Пресса",
                "price": "Скидка|Акция|Цена|Новинка", "package": "Чай|Печенье|Мыло|Кофе|Рис", "cheque": "Чек|Заплатите",
                "letter": "Письмо|Договор|Отчёт|Протокол", "menu": "Меню|Закуски|Горячее|Напитки",
                "timetable": "Расписание|Отправление", "screen": "Главная|Поиск|Сообщения|Профиль",
                "certificate": "Свидетельство|Диплом|Грамота|Аттестат"},
        organizations={"state": "Республика {}|Область {}|Город {}", "bank": "Банк {}|{}банк",
                       "shop": "Магазин {}|Дом {}|Театр {}", "office": "Университет {}|Академия {}|Институт {}"},
        phrases="Документ является собственностью учреждения.|Хранить в сухом месте и вернуть по требованию.|"
                "Без подписи недействителен.|Спасибо, ждём вас снова."),
    Language(
        name="Greek", script=None,
        syllables="βα λο μαρ τι σα ρεν δαλ κο βρι αν ελ τορ μι να σελ γα ρο χαλ νι βορ εσ τα λιν ορ πα δε κασ",
        labels="Επώνυμο|Όνομα|Κάτοχος|Ημ. γέννησης|Τόπος|Αριθμός|Έκδοση|Λήξη|Φύλο|Ύψος|Διεύθυνση|Υπογραφή|Ημερομηνία|Ώρα|"
               "Θέση|Πύλη|Από|Προς|Ποσό|ΣΥΝΟΛΟ|Βάρος|Παρτίδα|Σχόλια",
        titles={"id_card": "Δελτίο ταυτότητας|Άδεια διαμονής|Άδεια οδήγησης|Φοιτητική κάρτα|Κάρτα υγείας|Κάρτα εισόδου",
                "passport": "Διαβατήριο|Ταξιδιωτικό έγγραφο|Βίζα", "bank_card": CARDS,
                "form": "Αίτηση|Εγγραφή|Δήλωση|Ερωτηματολόγιο|Ιατρικός φάκελος|Τελωνείο",
                "receipt": "Απόδειξη|Τιμολόγιο|Πώληση", "ticket": "Εισιτήριο|Επιβίβαση|Κάρτα|Διαδρομή",
                "label": "Προτεραιότητα|Δέμα|Εύθραυστο|Βιολογικό|Στείρο|Εγγύηση",
                "invoice": "Τιμολόγιο|Πιστωτικό|Δελτίο αποστολής", "plate": "Ελλάς|Ταξί|Νομός",
                "badge": "Με λένε|Επισκέπτης|Προσωπικό|Τύπος", "price": "Προσφορά|Έκπτωση|Νέα τιμή|Μόνο",
                "package": "Τσάι|Μπισκότα|Σαπούνι|Καφές|Ρύζι", "cheque": "Επιταγή|Πληρώσατε",
                "letter": "Επιστολή|Σύμβαση|Έκθεση|Πρακτικά", "menu": "Κατάλογος|Ορεκτικά|Κυρίως|Ποτά",
                "timetable": "Δρομολόγια|Αναχωρήσεις", "screen": "Αρχική|Αναζήτηση|Μηνύματα|Προφίλ",
                "certificate": "Πιστοποιητικό|Δίπλωμα|Βραβείο|Πτυχίο"},
        organizations={"state": "Δημοκρατία {}|Βασίλειο {}|Δήμος {}", "bank": "Τράπεζα {}|{}",
                       "shop": "Οίκος {}|Θέατρο {}|Γραμμές {}", "office": "Πανεπιστήμιο {}|Υπουργείο {}|Ακαδημία {}"},
        phrases="Το έγγραφο ανήκει στον εκδότη.|Φυλάσσεται σε ξηρό μέρος και επιστρέφεται.|Δεν ισχύει χωρίς υπογραφή.|"
                "Ευχαριστούμε πολύ."),
    Language(
        name="Chinese", script="cjk", space="", wide=1.0,
        syllables="中 华 文 明 山 水 天 地 春 秋 金 木 火 土 东 西 南 北 光 和 平 安 康 福 星 月 江 河 海 林 石 云 风 龙 "
                  "新 大 国 华 长 永 宝 信 德 成 建 兴",
        labels="姓|名|姓名|出生日期|出生地|编号|签发日期|有效期至|性别|身高|住址|签名|日期|时间|座位|登机口|出发|到达|"
               "金额|合计|重量|批号|备注",
        titles={"id_card": "居民身份证|居留许可|驾驶证|学生证|社会保障卡|工作证", "passport": "护照|旅行证|签证",
                "form": "申请表|登记表|纳税申报表|调查问卷|病历", "receipt": "收据|小票|销售单",
                "ticket": "门票|登机牌|车票|月票", "label": "快递|易碎品|有机|无菌|保修", "plate": "警|学|试|港",
                "badge": "来宾|访客|嘉宾|工作人员|记者", "price": "特价|优惠|新品|促销",
                "package": "茶叶|饼干|香皂|大米|咖啡", "cheque": "支票|付款给", "letter": "通知|合同|报告|会议纪要",
                "menu": "菜单|凉菜|热菜|甜点|饮料", "timetable": "时刻表|出发|课程表",
                "screen": "首页|搜索|消息|设置|订单|我的", "invoice": "发票|账单|送货单",
                "certificate": "证书|毕业证书|奖状|执照", "bank_card": CARDS},
        organizations={"state": "{}共和国|{}省|{}市人民政府", "bank": "{}银行|{}农村信用社",
                       "shop": "{}超市|{}饭店|{}商场|{}公司", "office": "{}大学|{}研究院|{}医院|{}管理局"},
        phrases="本证件为签发机关所有。|请妥善保管，按要求交回。|无签名无效。|谢谢惠顾，欢迎再来。"),
    Language(
        name="Japanese", script="cjk", space="", wide=1.0,
        syllables="山 川 田 中 村 木 本 松 高 橋 小 林 さ く ら は な み の り か わ ま つ あ お い え き た ミ ナ ト ハ "
                  "ル カ ソ ラ 東 西 南 北 京 浜",
        labels="姓|名|氏名|生年月日|出生地|番号|交付日|有効期限|性別|身長|住所|署名|日付|時刻|座席|搭乗口|出発|到着|金額|"
               "合計|重量|ロット|備考",
        titles={"id_card": "身分証明書|在留カード|運転免許証|学生証|健康保険証|社員証", "passport": "旅券|渡航証明書|査証",
                "form": "申請書|登録用紙|確定申告書|アンケート|問診票", "receipt": "領収書|レシート|売上票",
                "ticket": "入場券|搭乗券|定期券|乗車券", "label": "速達|宅配便|取扱注意|有機|保証書",
                "plate": "品川|横浜|自家用|試験", "badge": "来賓|見学者|スタッフ|講演者",
                "price": "特売|お買得|新価格|本日限り", "package": "お茶|ビスケット|石けん|コーヒー|おもちゃ",
                "cheque": "小切手|支払先", "letter": "お知らせ|契約書|報告書|議事録",
                "menu": "お品書き|前菜|主菜|デザート|お飲み物", "timetable": "時刻表|発車案内|時間割",
                "screen": "ホーム|検索|メッセージ|設定|注文|ヘルプ", "invoice": "請求書|納品書|見積書",
                "certificate": "証明書|卒業証書|賞状|免許証", "bank_card": CARDS},
        organizations={"state": "{}国|{}県|{}市役所", "bank": "{}銀行|{}信用金庫",
                       "shop": "{}商店|カフェ{}|スーパー{}|{}屋", "office": "{}大学|{}研究所|{}病院|{}省"},
        phrases="この証明書は発行者に帰属します。|乾燥した場所に保管してください。|署名のないものは無効です。|"
                "ありがとうございました。"),
    Language(
        name="Korean", script="cjk", wide=0.9,
        syllables="가 나 다 라 마 바 사 아 자 한 국 서 울 부 산 대 구 인 천 광 주 민 수 영 진 현 우 지 은 하 늘 강 바 람 "
                  "별 빛 솔 송 정 최 김",
        labels="성|이름|성명|생년월일|출생지|번호|발급일|만료일|성별|키|주소|서명|날짜|시간|좌석|탑승구|출발|도착|금액|"
               "합계|무게|로트|비고",
        titles={"id_card": "주민등록증|외국인등록증|운전면허증|학생증|건강보험증|사원증",
                "passport": "여권|여행증명서|사증", "form": "신청서|등록서|세금신고서|설문지|진료기록",
                "receipt": "영수증|매출전표|계산서", "ticket": "입장권|탑승권|정기권|승차권",
                "label": "특급|택배|파손주의|유기농|보증서", "plate": "서울|경기|임시|외교",
                "badge": "방문객|손님|직원|기자", "price": "특가|할인|신상품|오늘만", "package": "녹차|과자|비누|쌀|커피",
                "cheque": "수표|지급처", "letter": "안내문|계약서|보고서|회의록", "menu": "메뉴|전채|식사|후식|음료",
                "timetable": "시간표|출발안내|운행표", "screen": "홈|검색|메시지|설정|주문|도움말",
                "invoice": "청구서|거래명세서|견적서", "certificate": "증명서|졸업장|상장|면허증", "bank_card": CARDS},
        organizations={"state": "{}공화국|{}도|{}시청", "bank": "{}은행|{}저축은행", "shop": "{}마트|카페{}|{}상회|{}식당",
                       "office": "{}대학교|{}연구소|{}병원|{}부"},
        phrases="이 문서는 발급 기관의 소유입니다.|건조한 곳에 보관하십시오.|서명이 없으면 무효입니다.|"
                "감사합니다. 또 오십시오."),
    Language(
        name="Arabic", script="arabic",
        syllables="مر نو سا لي بد كر هد جم عل فر حس نا دا رو شم قم بح نه را ما يا لا ور سل عم",
        labels="اللقب|الاسم|الاسم الكامل|تاريخ الميلاد|مكان الولادة|الرقم|تاريخ الإصدار|تاريخ الانتهاء|الجنس|الطول|"
               "العنوان|التوقيع|التاريخ|الوقت|المقعد|البوابة|من|إلى|المبلغ|المجموع|الوزن|الدفعة|ملاحظات",
        titles={"id_card": "بطاقة الهوية|بطاقة إقامة|رخصة قيادة|بطاقة طالب|بطاقة صحية",
                "passport": "جواز سفر|وثيقة سفر|تأشيرة", "form": "طلب|استمارة تسجيل|إقرار ضريبي|استبيان|سجل طبي",
                "receipt": "إيصال|فاتورة|بيع", "ticket": "تذكرة دخول|بطاقة صعود|اشتراك|تذكرة",
                "label": "عاجل|طرد سريع|قابل للكسر|عضوي|ضمان", "plate": "خصوصي|أجرة|نقل|تجربة",
                "badge": "زائر|ضيف|موظف|صحافة", "price": "تخفيض|عرض خاص|سعر جديد|اليوم فقط",
                "package": "شاي|بسكويت|صابون|أرز|قهوة", "cheque": "شيك|ادفعوا لأمر", "letter": "رسالة|عقد|تقرير|محضر",
                "menu": "قائمة الطعام|مقبلات|أطباق رئيسية|حلويات|مشروبات",
                "timetable": "جدول المواعيد|المغادرة|مواعيد العمل", "screen": "الرئيسية|بحث|رسائل|إعدادات|طلبات|مساعدة",
                "invoice": "فاتورة|كشف حساب|إشعار دائن", "certificate": "شهادة|دبلوم|جائزة|رخصة", "bank_card": CARDS},
        organizations={"state": "جمهورية {}|مملكة {}|مدينة {}", "bank": "بنك {}|مصرف {}",
                       "shop": "متجر {}|مقهى {}|مطعم {}|أسواق {}", "office": "جامعة {}|معهد {}|وزارة {}|مستشفى {}"},
        phrases="هذه الوثيقة ملك لجهة الإصدار.|تحفظ في مكان جاف وتعاد عند الطلب.|غير صالحة بدون توقيع.|شكرا لزيارتكم."),
    Language(
        name="Hindi", script="devanagari",
        syllables="रा म सी ता गं गा या मु ना दि ल्ली आ शा कि र ण वि का स पू जा मो ह न सु नी ल प्र भा क म ला",
        labels="उपनाम|नाम|पूरा नाम|जन्म तिथि|जन्म स्थान|संख्या|जारी तिथि|समाप्ति तिथि|लिंग|ऊँचाई|पता|हस्ताक्षर|तिथि|समय|"
               "सीट|द्वार|से|तक|राशि|कुल|वजन|बैच|टिप्पणी",
        titles={"id_card": "पहचान पत्र|निवास परमिट|ड्राइविंग लाइसेंस|छात्र कार्ड|स्वास्थ्य कार्ड",
                "passport": "पासपोर्ट|यात्रा दस्तावेज़|वीज़ा",
                "form": "आवेदन पत्र|पंजीकरण|कर विवरण|प्रश्नावली|चिकित्सा अभिलेख", "receipt": "रसीद|बिल|बिक्री",
                "ticket": "प्रवेश टिकट|बोर्डिंग पास|मासिक पास|यात्रा टिकट", "label": "शीघ्र|पार्सल|नाज़ुक|जैविक|गारंटी",
                "plate": "टैक्सी|सरकारी|अस्थायी", "badge": "अतिथि|आगंतुक|कर्मचारी|पत्रकार",
                "price": "छूट|विशेष मूल्य|नया मूल्य|आज ही", "package": "चाय|बिस्कुट|साबुन|चावल|कॉफ़ी",
                "cheque": "चेक|भुगतान करें", "letter": "पत्र|अनुबंध|प्रतिवेदन|सूचना",
                "menu": "भोजन सूची|नाश्ता|मुख्य भोजन|मिठाई|पेय", "timetable": "समय सारणी|प्रस्थान|खुलने का समय",
                "screen": "मुख्य पृष्ठ|खोज|संदेश|सेटिंग|सहायता", "invoice": "चालान|बीजक|विवरण",
                "certificate": "प्रमाण पत्र|उपाधि|पुरस्कार|अनुज्ञप्ति", "bank_card": CARDS},
        organizations={"state": "{} गणराज्य|{} राज्य|{} नगर निगम", "bank": "{} बैंक|बैंक ऑफ़ {}",
                       "shop": "{} भंडार|{} भोजनालय|{} स्टोर",
                       "office": "{} विश्वविद्यालय|{} संस्थान|{} मंत्रालय|{} अस्पताल"},
        phrases="यह दस्तावेज़ जारीकर्ता की संपत्ति है।|सूखे स्थान पर रखें और माँगने पर लौटाएँ।|"
                "हस्ताक्षर के बिना मान्य नहीं।|धन्यवाद, फिर पधारें।"),
)
