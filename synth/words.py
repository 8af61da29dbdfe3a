"""The vocabulary of the documents: labels, titles, organizations and people, in six languages and three scripts.

A language is an index into LANGUAGES. Every tuple below has one entry per language.
"""
import functools
import textwrap

from synth.draw import pick, rng

LANGUAGES = ("en", "fr", "de", "es", "ru", "el")

LABELS = {
    "surname": ("Surname", "Nom", "Nachname", "Apellidos", "Фамилия", "Επώνυμο"),
    "given": ("Given names", "Prénoms", "Vornamen", "Nombre", "Имя", "Όνομα"),
    "name": ("Name", "Titulaire", "Inhaber", "Titular", "Владелец", "Κάτοχος"),
    "birth": ("Date of birth", "Né(e) le", "Geburtstag", "Nacimiento", "Дата рождения", "Ημ. γέννησης"),
    "place": ("Place of birth", "Lieu", "Geburtsort", "Lugar", "Место", "Τόπος"),
    "number": ("Document no.", "Numéro", "Nummer", "Número", "Номер", "Αριθμός"),
    "issued": ("Issued", "Délivré le", "Ausgestellt", "Expedido", "Выдан", "Έκδοση"),
    "expires": ("Expires", "Expire le", "Gültig bis", "Válido hasta", "Годен до", "Λήξη"),
    "sex": ("Sex", "Sexe", "Geschlecht", "Sexo", "Пол", "Φύλο"),
    "height": ("Height", "Taille", "Größe", "Estatura", "Рост", "Ύψος"),
    "address": ("Address", "Adresse", "Anschrift", "Domicilio", "Адрес", "Διεύθυνση"),
    "signature": ("Signature", "Signature", "Unterschrift", "Firma", "Подпись", "Υπογραφή"),
    "date": ("Date", "Date", "Datum", "Fecha", "Дата", "Ημερομηνία"),
    "time": ("Time", "Heure", "Uhrzeit", "Hora", "Время", "Ώρα"),
    "seat": ("Seat", "Place", "Platz", "Asiento", "Место", "Θέση"),
    "gate": ("Gate", "Porte", "Tor", "Puerta", "Выход", "Πύλη"),
    "from": ("From", "De", "Von", "Origen", "Откуда", "Από"),
    "to": ("To", "À", "Nach", "Destino", "Куда", "Προς"),
    "amount": ("Amount", "Montant", "Betrag", "Importe", "Сумма", "Ποσό"),
    "total": ("TOTAL", "TOTAL", "SUMME", "TOTAL", "ИТОГО", "ΣΥΝΟΛΟ"),
    "weight": ("Weight", "Poids", "Gewicht", "Peso", "Вес", "Βάρος"),
    "lot": ("Lot", "Lot", "Charge", "Lote", "Партия", "Παρτίδα"),
    "remarks": ("Remarks", "Remarques", "Bemerkungen", "Notas", "Примечания", "Σχόλια"),
}

TITLES = {
    "id_card": (
        ("Identity card", "Residence permit", "Driving licence", "Student card", "Health insurance card", "Staff pass"),
        ("Carte d'identité", "Titre de séjour", "Permis de conduire", "Carte d'étudiant", "Carte de santé", "Badge"),
        ("Personalausweis", "Aufenthaltstitel", "Führerschein", "Studienausweis", "Gesundheitskarte", "Dienstausweis"),
        ("Documento de identidad", "Permiso de residencia", "Permiso de conducir", "Carné", "Tarjeta de salud", "Pase"),
        ("Удостоверение", "Вид на жительство", "Водительские права", "Студенческий билет", "Полис", "Пропуск"),
        ("Δελτίο ταυτότητας", "Άδεια διαμονής", "Άδεια οδήγησης", "Φοιτητική κάρτα", "Κάρτα υγείας", "Κάρτα εισόδου")),
    "passport": (("Passport", "Travel document", "Visa"), ("Passeport", "Titre de voyage", "Visa"),
                 ("Reisepass", "Reiseausweis", "Visum"), ("Pasaporte", "Título de viaje", "Visado"),
                 ("Паспорт", "Проездной документ", "Виза"), ("Διαβατήριο", "Ταξιδιωτικό έγγραφο", "Βίζα")),
    "bank_card": (("debit", "credit", "business", "platinum", "prepaid", "student"),) * len(LANGUAGES),
    "form": (("Application form", "Registration", "Tax declaration", "Questionnaire", "Medical record", "Customs form"),
             ("Demande", "Inscription", "Déclaration", "Questionnaire", "Dossier médical", "Douane"),
             ("Antrag", "Anmeldung", "Steuererklärung", "Fragebogen", "Krankenblatt", "Zollerklärung"),
             ("Solicitud", "Inscripción", "Declaración", "Cuestionario", "Historia clínica", "Aduana"),
             ("Заявление", "Регистрация", "Декларация", "Анкета", "Медицинская карта", "Таможня"),
             ("Αίτηση", "Εγγραφή", "Δήλωση", "Ερωτηματολόγιο", "Ιατρικός φάκελος", "Τελωνείο")),
    "receipt": (("Receipt", "Tax invoice", "Sale"), ("Reçu", "Ticket", "Vente"), ("Quittung", "Kassenbon", "Beleg"),
                ("Recibo", "Factura", "Venta"), ("Чек", "Квитанция", "Продажа"), ("Απόδειξη", "Τιμολόγιο", "Πώληση")),
    "ticket": (("Admission", "Boarding pass", "Season ticket", "Day return"),
               ("Entrée", "Carte d'embarquement", "Abonnement", "Aller-retour"),
               ("Eintritt", "Bordkarte", "Zeitkarte", "Fahrschein"), ("Entrada", "Embarque", "Abono", "Ida y vuelta"),
               ("Билет", "Посадочный талон", "Абонемент", "Проезд"), ("Εισιτήριο", "Επιβίβαση", "Κάρτα", "Διαδρομή")),
    "label": (("Priority", "Express parcel", "Fragile", "Organic", "Sterile", "Warranty"),
              ("Prioritaire", "Colis express", "Fragile", "Biologique", "Stérile", "Garantie"),
              ("Eilsendung", "Paketschein", "Zerbrechlich", "Ökologisch", "Steril", "Garantie"),
              ("Prioridad", "Paquete", "Frágil", "Ecológico", "Estéril", "Garantía"),
              ("Срочно", "Посылка", "Осторожно", "Натурально", "Стерильно", "Гарантия"),
              ("Προτεραιότητα", "Δέμα", "Εύθραυστο", "Βιολογικό", "Στείρο", "Εγγύηση")),
    "invoice": (("Invoice", "Tax invoice", "Credit note", "Statement"), ("Facture", "Avoir", "Relevé"),
                ("Rechnung", "Gutschrift", "Lieferschein"), ("Factura", "Abono", "Albarán"), ("Счёт", "Накладная", "Акт"),
                ("Τιμολόγιο", "Πιστωτικό", "Δελτίο αποστολής")),
    "plate": (("Republic", "State", "City", "Taxi", "Test", "Export"), ("Région", "Taxi"), ("Land", "Kreis", "Probe"),
              ("Región", "Taxi"), ("Россия", "Такси", "Область"), ("Ελλάς", "Ταξί", "Νομός")),
    "badge": (("Hello my name is", "Visitor", "Staff", "Guest", "Speaker", "Press"),
              ("Bonjour je suis", "Visiteur", "Invité", "Presse"), ("Mein Name ist", "Besucher", "Gast", "Personal"),
              ("Me llamo", "Visitante", "Invitado", "Prensa"), ("Меня зовут", "Посетитель", "Гость", "Пресса"),
              ("Με λένε", "Επισκέπτης", "Προσωπικό", "Τύπος")),
    "price": (("Sale", "Offer", "New price", "Only", "Today", "Fresh"), ("Promo", "Offre", "Prix bas", "Frais"),
              ("Aktion", "Angebot", "Nur", "Neu", "Frisch"), ("Oferta", "Rebaja", "Solo hoy", "Fresco"),
              ("Скидка", "Акция", "Цена", "Новинка"), ("Προσφορά", "Έκπτωση", "Νέα τιμή", "Μόνο")),
    "package": (("Tea", "Biscuits", "Soap", "Rice", "Coffee", "Cereal", "Toys"),
                ("Thé", "Biscuits", "Savon", "Café", "Jouets"),
                ("Tee", "Kekse", "Seife", "Kaffee", "Spielzeug"), ("Té", "Galletas", "Jabón", "Arroz", "Café"),
                ("Чай", "Печенье", "Мыло", "Кофе", "Рис"), ("Τσάι", "Μπισκότα", "Σαπούνι", "Καφές", "Ρύζι")),
    "cheque": (("Cheque", "Pay to"), ("Chèque", "Payez à"), ("Scheck", "Zahlen Sie an"), ("Cheque", "Páguese a"),
               ("Чек", "Заплатите"), ("Επιταγή", "Πληρώσατε")),
    "letter": (("Letter", "Contract", "Report", "Minutes", "Memo", "Notice"), ("Lettre", "Contrat", "Rapport", "Note"),
               ("Brief", "Vertrag", "Bericht", "Protokoll"), ("Carta", "Contrato", "Informe", "Acta"),
               ("Письмо", "Договор", "Отчёт", "Протокол"), ("Επιστολή", "Σύμβαση", "Έκθεση", "Πρακτικά")),
    "menu": (("Menu", "Starters", "Mains", "Desserts", "Drinks"), ("Carte", "Entrées", "Plats", "Desserts", "Boissons"),
             ("Speisekarte", "Vorspeisen", "Hauptgerichte", "Getränke"), ("Menú", "Entrantes", "Platos", "Postres"),
             ("Меню", "Закуски", "Горячее", "Напитки"), ("Κατάλογος", "Ορεκτικά", "Κυρίως", "Ποτά")),
    "timetable": (("Timetable", "Departures", "Schedule", "Opening hours"), ("Horaires", "Départs"), ("Fahrplan", "Abfahrt"),
                  ("Horario", "Salidas"), ("Расписание", "Отправление"), ("Δρομολόγια", "Αναχωρήσεις")),
    "screen": (("Home", "Search", "Messages", "Settings", "Orders", "Profile", "News", "Help"),
               ("Accueil", "Recherche", "Messages", "Réglages", "Profil"), ("Start", "Suche", "Nachrichten", "Profil",
                                                                            "Hilfe"),
               ("Inicio", "Buscar", "Mensajes", "Ajustes", "Perfil"), ("Главная", "Поиск", "Сообщения", "Профиль"),
               ("Αρχική", "Αναζήτηση", "Μηνύματα", "Προφίλ")),
    "certificate": (("Certificate", "Diploma", "Award", "Licence"), ("Certificat", "Diplôme", "Prix", "Brevet"),
                    ("Urkunde", "Diplom", "Zeugnis", "Zertifikat"), ("Certificado", "Diploma", "Premio", "Título"),
                    ("Свидетельство", "Диплом", "Грамота", "Аттестат"),
                    ("Πιστοποιητικό", "Δίπλωμα", "Βραβείο", "Πτυχίο")),
}

ORGANIZATIONS = {
    "state": (("Republic of {}", "Kingdom of {}", "{} Federation", "State of {}", "City of {}"),
              ("République de {}", "Royaume de {}", "Canton de {}"), ("Republik {}", "Freistaat {}", "Land {}"),
              ("República de {}", "Reino de {}", "Provincia de {}"), ("Республика {}", "Область {}", "Город {}"),
              ("Δημοκρατία {}", "Βασίλειο {}", "Δήμος {}")),
    "bank": (("{} Bank", "Bank of {}", "{} Savings", "{}pay"), ("Banque {}", "Crédit {}"), ("{}bank", "Sparkasse {}"),
             ("Banco {}", "Caja {}"), ("Банк {}", "{}банк"), ("Τράπεζα {}", "{}")),
    "shop": (("{} Market", "{} & Sons", "Café {}", "{} Motors", "{} Lines"), ("Maison {}", "Chez {}", "Transports {}"),
             ("{} GmbH", "Gasthof {}", "{} Bahn"), ("Casa {}", "Hotel {}", "Viajes {}"),
             ("Магазин {}", "Дом {}", "Театр {}"), ("Οίκος {}", "Θέατρο {}", "Γραμμές {}")),
    "office": (("University of {}", "{} Institute", "Ministry of {}", "{} Health Board", "Academy of {}"),
               ("Université de {}", "Ministère de {}", "Institut {}"), ("Universität {}", "Amt {}", "Akademie {}"),
               ("Universidad de {}", "Ministerio de {}", "Colegio {}"),
               ("Университет {}", "Академия {}", "Институт {}"),
               ("Πανεπιστήμιο {}", "Υπουργείο {}", "Ακαδημία {}")),
}

PHRASES = (
    ("This document remains the property of the issuer.", "Keep it in a dry place and return it when asked.",
     "Not valid without signature.", "Thank you and see you soon."),
    ("Ce document reste la propriété de l'émetteur.", "À conserver au sec et à rendre sur demande.",
     "Non valable sans signature.", "Merci et à bientôt."),
    ("Dieses Dokument bleibt Eigentum des Ausstellers.", "Trocken lagern und auf Verlangen zurückgeben.",
     "Ohne Unterschrift ungültig.", "Vielen Dank, bis bald."),
    ("Este documento es propiedad del emisor.", "Consérvese en lugar seco y devuélvase si se pide.",
     "No es válido sin firma.", "Gracias y hasta pronto."),
    ("Документ является собственностью учреждения.", "Хранить в сухом месте и вернуть по требованию.",
     "Без подписи недействителен.", "Спасибо, ждём вас снова."),
    ("Το έγγραφο ανήκει στον εκδότη.", "Φυλάσσεται σε ξηρό μέρος και επιστρέφεται.",
     "Δεν ισχύει χωρίς υπογραφή.", "Ευχαριστούμε πολύ."),
)

_LATIN = "ve lo mar ti sa ren dal ko bri an el tor mi na sel ga ro hal ni vor es ta lin or pa de win".split()
_CYRILLIC = "ва ло мар ти са рен дал ко бри ан ел тор ми на сел га ро хал ни вор ес та лин ор па де вин".split()
_GREEK = "βα λο μαρ τι σα ρεν δαλ κο βρι αν ελ τορ μι να σελ γα ρο χαλ νι βορ εσ τα λιν ορ πα δε κασ".split()


def name(r, language):
    """A random name of two or three syllables in the script of the language."""
    syllables = {"ru": _CYRILLIC, "el": _GREEK}.get(LANGUAGES[language], _LATIN)
    return "".join(pick(r, syllables) for _ in range(int(r.integers(2, 4)))).capitalize()


def organization(r, kind, language):
    return pick(r, ORGANIZATIONS[kind][language]).format(name(r, language))


def title(r, family, language):
    return pick(r, TITLES[family][language])


@functools.lru_cache(maxsize=len(LANGUAGES))
def _pool(language):
    """Words to draw running text from, since a name costs as much as drawing it."""
    r = rng("words", language)
    return [name(r, language).lower() for _ in range(600)]


def phrase(r, language, n):
    """n words without a meaning, the first with a capital letter."""
    pool = _pool(language)
    return " ".join(pool[i] for i in r.integers(len(pool), size=n)).capitalize()


def sentence(r, language, n=9):
    """A phrase with a full stop, for the running text of a document."""
    return phrase(r, language, n) + "."


def lines(r, language, n, wide, lead=""):
    """A paragraph of n words, in lines of at most `wide` letters; the first begins with `lead`."""
    return textwrap.wrap(lead + sentence(r, language, n), wide)


def usable(language):
    """The language itself, as there are letters for all of them."""
    return language
