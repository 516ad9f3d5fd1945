"""Check digits of Taiwan's numbers: identity and residence numbers, 統一編號, payment cards.

A number with a wrong check digit is no such number: of ten letters-and-digits that merely look like a 身分證字號 nine fail.
Cards are told by their issuers' ranges (ISO/IEC 7812) and Luhn. Thirteen digits are never a card here: Visa gave them up,
and bar codes of Taiwan (471…) begin with 4 and have thirteen.
"""

# The letter of an identity number as two digits (A 10 … Z 33; order of introduction for I, O, W, Z)
LETTERS = {letter: number for number, letter in enumerate("ABCDEFGHJKLMNPQRSTUVXYWZIO", 10)}
ID_WEIGHTS = (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1)
COMPANY_WEIGHTS = (1, 2, 1, 2, 1, 2, 4, 1)


def plain(number: str) -> str:
    """Letters and digits only, in upper case: `a-123 456` → `A123456`."""
    return "".join(char for char in number if char.isalnum()).upper()


def valid_identity(number: str) -> bool:
    """Whether 身分證字號 (second sign 1, 2) or new 居留證號 (8, 9) has the right check digit.

    >>> valid_identity("A123456789"), valid_identity("A123456788"), valid_identity("A800000014")
    (True, False, True)
    """
    number = plain(number)
    tens, ones = divmod(LETTERS[number[0]], 10)
    return sum(w * d for w, d in zip(ID_WEIGHTS, (tens, ones, *map(int, number[1:])), strict=True)) % 10 == 0


def valid_old_permit(number: str) -> bool:
    """Whether an old 居留證號 (two letters, eight digits) has the right check digit; the second letter counts by its ones."""
    number = plain(number)
    tens, ones = divmod(LETTERS[number[0]], 10)
    digits = (tens, ones, LETTERS[number[1]] % 10, *map(int, number[2:]))
    return sum(w * d for w, d in zip(ID_WEIGHTS, digits, strict=True)) % 10 == 0


def valid_company(number: str) -> bool:
    """Whether eight digits are a 統一編號: digit sums divisible by 5 (rule of 2023), a 7 in the seventh place may count as 0 or 1.

    >>> valid_company("04595257"), valid_company("12345678")
    (True, False)
    """
    number = plain(number)
    sums = [sum(divmod(w * int(d), 10)) for w, d in zip(COMPANY_WEIGHTS, number, strict=True)]
    total = sum(sums)
    return total > 0 and (total % 5 == 0 or (number[6] == "7" and (total - sums[6] + 1) % 5 == 0))


def valid_card(number: str) -> bool:
    """Whether 14 to 19 digits (spaces and hyphens between them) pass Luhn's check and begin as an issuer's do.

    >>> valid_card("4111 1111 1111 1111"), valid_card("4111 1111 1111 1112"), valid_card("8111111111111119")
    (True, False, False)
    """
    digits = [int(d) for d in plain(number)]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return bool(issuer(plain(number))) and len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def issuer(number: str) -> str:
    """Whose card the digits begin as, "" for nobody's.

    >>> issuer("4111111111111111"), issuer("3560111111111111"), issuer("9789571365435")
    ('Visa', 'JCB', '')
    """
    size, two, three, four = len(number), int(number[:2]), int(number[:3]), int(number[:4])
    if number[0] == "4" and size in (16, 19):
        return "Visa"
    if size == 16 and (51 <= two <= 55 or 2221 <= four <= 2720):
        return "Mastercard"
    if two in (34, 37) and size == 15:
        return "American Express"
    if 3528 <= four <= 3589 and 16 <= size <= 19:
        return "JCB"
    if two == 62 and 16 <= size <= 19:
        return "UnionPay"
    if (four == 6011 or two == 65 or 644 <= three <= 649) and size in (16, 19):
        return "Discover"
    return "Diners" if (300 <= three <= 305 or two in (36, 38)) and size == 14 else ""
